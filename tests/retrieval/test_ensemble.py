"""Slices, fusion and matching of an ensemble against dense NumPy, and the refusal of what does not belong together."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, FusionConfig
from xmodal_kedro.reporting.leaderboard import render_gain
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.ensemble import (
    Member,
    check_fusion,
    choose_weights,
    fused_scores,
    match_slices,
    pair_members,
    rank_slices,
)
from xmodal_kedro.retrieval.judge import embedding_scores, judge_slices, judged_table
from xmodal_kedro.retrieval.slices import Slice, cut_slices
from xmodal_kedro.retrieval.standings import best_ranks, compare, compare_standings, judge_standings

RELEVANCE = RelevanceConfig(default="id", groups={"vehicle": "attribute_text"})
DIM = 12


def pair(split: str, group: str, number: int, attributes: str | None = None) -> dict:
    name = f"{split}/{group}/{number}"
    return {
        **{"image_id": f"{name}.jpg", "text_id": f"{name}.txt", "path": f"{name}.jpg", "text": f"text {number}"},
        **{"group": group, "attributes": attributes, "split": split, "row": number, "source": split},
    }


def captions() -> pd.DataFrame:
    rows = [pair(s, "pedestrian", n) for s, n in itertools.product(("train", "dev", "val"), range(30))]
    rows += [pair(s, "vehicle", n, f"A {'red' if n % 3 else 'blue'} Audi.") for s in ("dev", "val") for n in range(20)]
    rows += [pair("test", "vehicle", n) | {"image_id": None, "path": None} for n in range(5)]
    rows += [pair("test", "vehicle", 100 + n) | {"text_id": None, "text": None} for n in range(8)]
    return pd.DataFrame(rows)


def member(table: pd.DataFrame, name: str, noise: float, seed: int, fingerprint: str = "these") -> Member:
    """Embeddings of a member that knows which image belongs to which text, up to noise."""
    rng = np.random.default_rng(seed)
    truth = {key: np.random.default_rng(n).normal(size=DIM) for n, key in enumerate(sorted(set(table["row"])))}
    sides = {}
    for side, column in (("text", "text_id"), ("image", "image_id")):
        rows = table[table["split"] != "train"].dropna(subset=[column]).drop_duplicates(column)
        matrix = np.stack([truth[row] + noise * rng.normal(size=DIM) for row in rows["row"]]).astype(np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        made_by = {"weights": name, "captions": fingerprint}
        sides[side] = Embeddings(rows[column].tolist(), matrix, {"member": name, "side": side, "fingerprints": made_by})
    return Member(name, sides["text"], sides["image"])


TABLE = captions()
GOOD, POOR = member(TABLE, "good", 0.8, 1), member(TABLE, "poor", 50.0, 2)


def dense(one: Member, part: Slice) -> np.ndarray:
    return one.texts.take(part.text_ids).astype(np.float64) @ one.images.take(part.image_ids).astype(np.float64).T


def test_slices_hold_one_group_of_one_split_each() -> None:
    slices = cut_slices(TABLE, RELEVANCE, ["dev", "val", "test"])
    assert [(s.split, s.group) for s in slices] == [
        *(("dev", "pedestrian"), ("dev", "vehicle"), ("val", "pedestrian"), ("val", "vehicle"), ("test", "vehicle"))
    ]
    people, cars, *_, blind = slices
    assert (people.relevance.toarray() == np.eye(30, dtype=bool)).all()
    assert cars.relevance.nnz == 7 * 7 + 13 * 13  # many rows share one of two phrases
    assert (len(blind.text_ids), len(blind.image_ids), blind.relevance.nnz) == (5, 8, 0)


def test_a_text_of_several_images_is_one_query_and_equal_texts_are_one_cluster() -> None:
    rows = [pair("val", "all", 1), pair("val", "all", 1) | {"image_id": "other.jpg"}, pair("val", "all", 2)]
    rows[2]["text"] = rows[0]["text"]
    (part,) = cut_slices(pd.DataFrame(rows), RelevanceConfig(), ["val"])
    assert part.text_ids == ["val/all/1.txt", "val/all/2.txt"]
    assert part.relevance.toarray().tolist() == [[True, True, False], [False, False, True]]
    assert part.clusters.tolist() == [0, 0]


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_fused_scores_are_the_published_formula(direction: str) -> None:
    part = cut_slices(TABLE, RELEVANCE, ["val"])[1]
    weights = {"good": 0.7, "poor": 0.3}
    source = fused_scores([GOOD, POOR], {"weights": weights}, FusionConfig())(part)[direction == "i2t"]
    expected = np.zeros(source.shape)
    for one in (GOOD, POOR):
        scores = dense(one, part) if direction == "t2i" else dense(one, part).T
        expected += weights[one.name] * scores / np.linalg.norm(scores, axis=1, keepdims=True)
    n, m = source.shape
    found = source.tile(slice(0, n), slice(0, m)).scores.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rankings_stay_within_their_group_and_follow_the_scores() -> None:
    slices = cut_slices(TABLE, RELEVANCE, ["val", "test"])
    table = rank_slices(slices, embedding_scores(GOOD.texts, GOOD.images), top_k=6)
    assert list(table.columns) == ["split", "group", "direction", "query_id", "rank", "gallery_id", "score"]
    for part in slices:
        rows = table[(table["split"] == part.split) & (table["group"] == part.group) & (table["direction"] == "t2i")]
        scores = dense(GOOD, part)
        for number, text in enumerate(part.text_ids):
            expected = [part.image_ids[i] for i in np.argsort(-scores[number], kind="stable")[:6]]
            assert rows.loc[rows["query_id"] == text, "gallery_id"].tolist() == expected
    assert table.groupby(["direction", "query_id"])["rank"].max().isin([5, 6]).all()  # five texts for an image of test


def test_weights_are_searched_on_dev_alone_and_find_the_better_member() -> None:
    slices = cut_slices(TABLE, RELEVANCE, ["dev"])
    found = choose_weights([POOR, GOOD], slices, FusionConfig())
    assert found["chosen"] == "searched"
    assert found["weights"]["good"] >= 0.7
    assert sum(found["weights"].values()) == pytest.approx(1.0)
    assert found["value"] >= max(found["alone"].values())
    judged = judge_slices(slices, embedding_scores(GOOD.texts, GOOD.images), [1])["dev"]
    alone = np.concatenate([both[0].values["map_at_10"] for both in judged.values()]).mean()
    assert found["alone"]["good"] == pytest.approx(alone)


def test_weights_may_be_equal_or_given() -> None:
    members = [GOOD, POOR]
    assert choose_weights(members, [], FusionConfig(weights="equal"))["weights"] == {"good": 0.5, "poor": 0.5}
    given = choose_weights(members, [], FusionConfig(weights={"good": 3.0}))
    assert given["weights"] == {"good": 1.0, "poor": 0.0}
    with pytest.raises(ValueError, match=r"ensemble\.fusion\.weights"):
        choose_weights(members, [], FusionConfig(weights={"god": 1.0}))
    with pytest.raises(ValueError, match=r"set ensemble\.fusion\.weights to equal"):
        choose_weights(members, [], FusionConfig())


def test_matching_is_one_to_one_and_says_what_is_right_where_it_is_known() -> None:
    slices = cut_slices(TABLE, RELEVANCE, ["val", "test"])
    table, proofs = match_slices(slices, embedding_scores(GOOD.texts, GOOD.images))
    assert [proof.split(":")[0] for proof in proofs] == [f"{part.split}/{part.group}" for part in slices]
    assert all("gap" in proof for proof in proofs)
    for (split, group), rows in table.groupby(["split", "group"]):
        part = next(s for s in slices if (s.split, s.group) == (split, group))
        assert rows["text_id"].is_unique
        assert rows["image_id"].is_unique
        assert len(rows) == min(len(part.text_ids), len(part.image_ids))
    people = table[(table["split"] == "val") & (table["group"] == "pedestrian")]
    assert (people["right"] == (people["text_id"].str[:-4] == people["image_id"].str[:-4])).all()
    assert table.loc[table["split"] == "test", "right"].isna().all()


def test_the_mixture_is_compared_with_each_member_on_the_same_queries() -> None:
    slices = cut_slices(TABLE, RELEVANCE, ["val"])
    judged = {
        one.name: judge_slices(slices, embedding_scores(one.texts, one.images), [1])["val"] for one in (GOOD, POOR)
    }
    table = compare(judged["good"], judged, ["map_at_10"], seed=0).set_index(["member", "direction"])
    same, better = table.loc[("good", "t2i")], table.loc[("poor", "t2i")]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert better["low"] > 0
    assert better["p"] < 0.01
    assert better["difference"] == pytest.approx(better["ensemble"] - better["alone"])


def test_everybody_is_judged_on_the_same_queries_and_fused_stands_beside_what_was_re_ranked() -> None:
    fusion, evaluation = FusionConfig(), EvaluationConfig(ks=[1], bootstrap=50)
    weights = {"weights": {"good": 0.5, "poor": 0.5}}
    slices = cut_slices(TABLE, RELEVANCE, ["dev", "val"])
    plain = judge_standings([POOR, GOOD], slices, weights, fusion, [1])
    assert list(plain) == ["poor", "good", "ensemble"]
    assert {len(ranks) for ranks in best_ranks(plain).values()} == {50}
    found = compare_standings(plain, fusion, evaluation)
    rare = fusion.model_copy(update={"metric": "map_at_3"})  # one that no table has by itself
    shown = compare_standings(judge_standings([POOR, GOOD], slices, weights, rare, [1]), rare, evaluation)
    assert "map_at_3" in set(shown["metric"])
    assert set(found["split"]) == {"val"}
    assert found.groupby("member")["best_on_dev"].all().to_dict() == {"good": True, "poor": False}

    again = judge_standings([POOR, GOOD], slices, weights, fusion, [1], oracle(slices, weights, fusion))
    assert list(again) == ["poor", "good", "fused", "ensemble"]
    for name in ("poor", "good"):
        assert (best_ranks(again)[name] == best_ranks(plain)[name]).all()
    assert (best_ranks(again)["fused"] == best_ranks(plain)["ensemble"]).all()
    table = compare_standings(again, fusion, evaluation).query("member == 'fused'")
    assert set(table["direction"]) == {"t2i"}
    assert not table["best_on_dev"].any()
    both = compare_standings(again, fusion, evaluation, ["t2i", "i2t"]).query("member == 'fused'")
    assert set(both["direction"]) == {"t2i", "i2t"}
    gain = table.set_index("metric").loc["map_at_10"]
    assert gain["low"] > 0
    assert gain["ensemble"] > gain["alone"]
    shown = render_gain(compare_standings(again, fusion, evaluation))
    assert "over the mixture before re-ranking" in shown
    assert "t2i map_at_10     ensemble - fused: +" in shown
    assert "ensemble - poor" not in shown
    assert "before re-ranking" not in render_gain(found)


def oracle(slices: list[Slice], weights: dict, fusion: FusionConfig) -> pd.DataFrame:
    """A re-ranking of the first five by somebody who knows what is right."""
    ranked = rank_slices(slices, fused_scores([POOR, GOOD], weights, fusion), 5).query("direction == 't2i'")
    truth = {
        (text, image)
        for part in slices
        for text, row in zip(part.text_ids, part.relevance.toarray(), strict=True)
        for image in np.asarray(part.image_ids)[row]
    }
    right = [pair in truth for pair in zip(ranked["query_id"], ranked["gallery_id"], strict=True)]
    return ranked.assign(fused=ranked["score"], score=np.array(right, float))


def test_blind_splits_are_not_judged_and_a_table_needs_truth() -> None:
    scores = embedding_scores(GOOD.texts, GOOD.images)
    assert judge_slices(cut_slices(TABLE, RELEVANCE, ["test"]), scores, [1]) == {}
    with pytest.raises(ValueError, match="good cannot be judged"):
        judged_table("good", {}, EvaluationConfig())


def test_sides_that_do_not_belong_together_are_refused() -> None:
    assert [m.name for m in pair_members([GOOD.images, POOR.texts, GOOD.texts, POOR.images], "these")] == [
        "good",
        "poor",
    ]
    with pytest.raises(OtherOriginError, match="captions"):
        pair_members([GOOD.images, GOOD.texts], "others")
    retrained = Embeddings(POOR.texts.ids, POOR.texts.matrix, GOOD.texts.meta | {"fingerprints": {"captions": "these"}})
    with pytest.raises(OtherOriginError, match="weights"):
        pair_members([GOOD.images, retrained], "these")


def test_weights_chosen_for_other_members_are_refused_and_retrained_members_named() -> None:
    equal = FusionConfig(weights="equal")
    fusion = choose_weights([GOOD, POOR], [], equal)
    assert check_fusion(fusion, [POOR, GOOD], equal) == []
    with pytest.raises(ValueError, match=r"chosen for good, poor, but the members are good: run --pipelines=ensemble"):
        check_fusion(fusion, [GOOD], equal)
    for other in ({"normalisation": "zscore"}, {"normalisations": {"poor": "none"}}, {"method": "learned"}):
        with pytest.raises(ValueError, match=r"chosen with ensemble\.fusion (method|normalisations) "):
            check_fusion(fusion, [GOOD, POOR], FusionConfig(weights="equal", **other))
    with pytest.raises(ValueError, match=r"weights equal \(now \{'good': 1\.0\}\)"):
        check_fusion(fusion, [GOOD, POOR], FusionConfig(weights={"good": 1.0}))
    assert check_fusion(fusion, [POOR, GOOD], FusionConfig(weights="equal", neighbours=3)) == []  # nobody reads it
    csls = FusionConfig(weights="equal", normalisation="csls_transductive")
    fusion_of_csls = choose_weights([GOOD, POOR], [], csls)
    with pytest.raises(ValueError, match=r"neighbours 10 \(now 3\)"):
        check_fusion(fusion_of_csls, [GOOD, POOR], csls.model_copy(update={"neighbours": 3}))
    fusion["members"]["poor"] = {"weights": "of an older training"}
    assert check_fusion(fusion, [GOOD, POOR], equal) == ["poor"]
