"""Re-ranking against one text at a time, against what was published, and in everything that reads scores after it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from tests.models.small import small_member
from tests.reference import adaption as slow_adaption
from tests.reference import rerank as slow
from tests.retrieval.matching import SIZE, Matching
from xmodal_kedro.config.ensemble import RerankConfig
from xmodal_kedro.models.checkpoint import Checkpoint
from xmodal_kedro.retrieval.embed import embed_images, embed_texts
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.ensemble import Member, match_slices, rank_slices
from xmodal_kedro.retrieval.judge import embedding_scores, judge_slices
from xmodal_kedro.retrieval.rerank import check_reranker, reordered, rerank_slices
from xmodal_kedro.retrieval.rerank import slices as rerank_module
from xmodal_kedro.retrieval.scores import MatrixScores
from xmodal_kedro.retrieval.slices import Slice

WORDS = ["red", "blue", "car", "bus", "woman", "man", "coat", "seen from behind", "at night"]


def a_slice(split: str, group: str, texts: int, images: int, seed: int) -> Slice:
    rng = np.random.default_rng(seed)
    names = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(texts)]
    relevance = sparse.csr_array((rng.random((texts, images)) < 0.1) & (split != "test"))
    ids = [[f"{split}/{group}/{side}{n}" for n in range(count)] for side, count in (("t", texts), ("i", images))]
    return Slice(split, group, ids[0], names, ids[1], relevance)


SLICES = [
    a_slice("val", "vehicle", 17, 23, 1),
    a_slice("val", "pedestrian", 5, 4, 2),
    a_slice("test", "vehicle", 6, 9, 3),
]
EMPTY = [a_slice("test", "pedestrian", 0, 3, 4), a_slice("dev", "pedestrian", 3, 0, 5)]
BACKBONE = Matching()
IMAGE_IDS = [name for part in SLICES for name in part.image_ids]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(IMAGE_IDS), SIZE, SIZE, 3), dtype=np.uint8)
IMAGES = SimpleNamespace(
    pixels=PIXELS, fingerprint="packed", rows=lambda ids: pd.Index(IMAGE_IDS).get_indexer(pd.Index(ids))
)
CHECKPOINT = Checkpoint(BACKBONE, small_member(), {}, {"weights": "these"})


def the_member() -> Member:
    text_ids = [name for part in SLICES for name in part.text_ids]
    texts = [text for part in SLICES for text in part.texts]
    made_by = {"weights": "these", "images": "packed"}
    both = {"text": (text_ids, embed_texts(BACKBONE, texts)), "image": (IMAGE_IDS, embed_images(BACKBONE, PIXELS))}
    sides = {side: Embeddings(ids, matrix, {"member": "m", "side": side, "fingerprints": made_by})
             for side, (ids, matrix) in both.items()}  # fmt: skip
    return Member("m", sides["text"], sides["image"])


MEMBER = the_member()
SCORES = embedding_scores(MEMBER.texts, MEMBER.images)


@pytest.fixture(autouse=True)
def _matching_is_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's config names open_clip, which here is the family with a head."""
    found = rerank_module.family
    monkeypatch.setattr(rerank_module, "family", lambda name: Matching if name == "open_clip" else found(name))


def config(method: str = "itm", **options: object) -> RerankConfig:
    return RerankConfig(method=method, member="m", batch_size=4, **options)


def rerank(settings: RerankConfig, slices: list[Slice] = SLICES) -> pd.DataFrame:
    return rerank_slices(slices, SCORES, MEMBER, settings, "cpu", CHECKPOINT, IMAGES)


def dense(part: Slice) -> np.ndarray:
    return MEMBER.texts.take(part.text_ids).astype(np.float64) @ MEMBER.images.take(part.image_ids).astype(np.float64).T


@torch.no_grad()
def logits(part: Slice) -> np.ndarray:
    """Of every pair of a slice, each alone."""
    BACKBONE.eval()
    pixels = BACKBONE.image_transform(train=False)(torch.from_numpy(PIXELS[IMAGES.rows(part.image_ids)]))
    states = BACKBONE.image_states(pixels)
    rows = [BACKBONE.match(states, {k: v.repeat(len(states), 1) for k, v in BACKBONE.tokenize([text]).items()})
            for text in part.texts]  # fmt: skip
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("formula", ["fused_plus_unit_itm", "itm_plus_fused", "itm"])
def test_rankings_are_those_of_each_text_alone(formula: str) -> None:
    settings = config(formula=formula, top_k=6, top_ks={"pedestrian": 3})
    table = rank_slices(SLICES, reordered(SCORES, rerank(settings)), top_k=9)
    for part in SLICES:
        fused, itm = dense(part), logits(part)
        rows = table[(table["split"] == part.split) & (table["group"] == part.group) & (table["direction"] == "t2i")]
        for number, text in enumerate(part.text_ids):
            k = 3 if part.group == "pedestrian" else 6
            expected = slow.reranked(fused[number], itm[number], k, formula)[:9]
            of_text = rows[rows["query_id"] == text]
            assert of_text["gallery_id"].tolist() == [part.image_ids[i] for i in expected]
            np.testing.assert_allclose(of_text["score"], np.sort(fused[number])[::-1][:9], atol=1e-6)


def test_the_table_says_what_happened() -> None:
    table = rerank(config(top_k=5), [*SLICES, *EMPTY])
    columns = [
        "split",
        "group",
        "direction",
        "query_id",
        "gallery_id",
        "first_rank",
        "fused",
        "second",
        "score",
        "rank",
    ]
    assert list(table.columns) == columns
    assert len(table) == 17 * 5 + 5 * 4 + 6 * 5  # a gallery of 4 has 4 candidates
    for _, rows in table.groupby(["split", "group", "query_id"], sort=False):
        assert rows["first_rank"].tolist() == list(range(1, len(rows) + 1))
        assert rows["fused"].is_monotonic_decreasing
        ordered = rows.sort_values("rank")
        assert ordered["score"].is_monotonic_decreasing
        assert ordered["rank"].tolist() == rows["first_rank"].tolist()
        unit = rows["second"] / np.linalg.norm(rows["second"])
        np.testing.assert_allclose(rows["score"], rows["fused"] + unit, atol=1e-6)
    assert (table["rank"] != table["first_rank"]).mean() > 0.3
    assert rerank(config(), EMPTY).empty


def test_the_published_script_changes_nothing_and_this_one_does() -> None:
    """There, the argument rank=10 was overwritten by the rank of the process, 0 on one process, before topk(rank)."""
    part = SLICES[0]
    fused, itm = dense(part), logits(part)
    first = rank_slices([part], SCORES, top_k=23).query("direction == 't2i'")
    ours = rank_slices([part], reordered(SCORES, rerank(config(), [part])), top_k=23).query("direction == 't2i'")
    moved = 0
    for number, text in enumerate(part.text_ids):
        before = first.loc[first["query_id"] == text, "gallery_id"].tolist()
        process = 0
        published = slow.published(fused[number], itm[number], k=process)
        assert [part.image_ids[i] for i in published] == before
        moved += ours.loc[ours["query_id"] == text, "gallery_id"].tolist() != before
    assert moved == len(part.text_ids)


def test_the_published_sum_drops_candidates_below_the_tail_and_this_one_does_not() -> None:
    part = SLICES[0]
    fused = dense(part) / np.linalg.norm(dense(part), axis=1, keepdims=True)
    itm = logits(part)
    mixture = lambda _: (MatrixScores(fused), None)  # noqa: E731
    table = rerank_slices([part], mixture, MEMBER, config(top_k=10), "cpu", CHECKPOINT, IMAGES)
    ours = rank_slices([part], reordered(mixture, table), top_k=23).query("direction == 't2i'")
    dropped = 0
    for number, text in enumerate(part.text_ids):
        first = np.argsort(-fused[number], kind="stable")
        assert (itm[number][first[:10]] < 0).any()
        dropped += set(slow.published(fused[number], itm[number], 10)[:10]) != set(first[:10].tolist())
        found = ours.loc[ours["query_id"] == text, "gallery_id"].tolist()
        assert set(found[:10]) == {part.image_ids[i] for i in first[:10]}
        assert found[10:] == [part.image_ids[i] for i in first[10:]]
    assert dropped == len(part.text_ids)


def test_images_over_texts_stay_as_they_are() -> None:
    changed = reordered(SCORES, rerank(config()))
    before, after = (rank_slices(SLICES, scores, 10).query("direction == 'i2t'") for scores in (SCORES, changed))
    pd.testing.assert_frame_equal(before, after)
    judged, again = (judge_slices(SLICES, scores, [1, 10])["val"]["vehicle"] for scores in (SCORES, changed))
    assert judged[1].values["mrr"].tolist() == again[1].values["mrr"].tolist()
    assert judged[0].values["mrr"].tolist() != again[0].values["mrr"].tolist()
    assert judged[0].values["recall_at_10"].tolist() == again[0].values["recall_at_10"].tolist()


@pytest.mark.parametrize("directions", [["i2t"], ["i2t", "t2i"], ["t2i", "i2t", "i2t"]])
def test_both_directions_are_re_ranked_from_the_same_logits(directions: list[str]) -> None:
    settings = config(directions=directions, top_k=6, top_ks={"pedestrian": 3})
    seen = len(BACKBONE.pairs_seen)
    reranking = rerank(settings)
    matched = sum(pairs for pairs, _ in BACKBONE.pairs_seen[seen:])
    table, before = (rank_slices(SLICES, scores, top_k=9) for scores in (reordered(SCORES, reranking), SCORES))
    assert set(reranking["direction"]) == set(directions)
    candidates = 0
    for part in SLICES:
        fused, itm, k = dense(part), logits(part), 3 if part.group == "pedestrian" else 6
        asked = set()
        text_of = dict(zip(part.text_ids, part.texts, strict=True))
        for direction, first, second in (("t2i", fused, itm), ("i2t", fused.T, itm.T)):
            ids = (part.text_ids, part.image_ids) if direction == "t2i" else (part.image_ids, part.text_ids)
            of = f"split == '{part.split}' and group == '{part.group}' and direction == '{direction}'"
            rows = table.query(of)
            if direction not in directions:
                pd.testing.assert_frame_equal(rows, before.query(of))
                continue
            for number, query in enumerate(ids[0]):
                expected = slow.reranked(first[number], second[number], k, settings.formula)[:9]
                assert rows.loc[rows["query_id"] == query, "gallery_id"].tolist() == [ids[1][i] for i in expected]
            found = reranking.query(of)
            pairs = zip(found["query_id"], found["gallery_id"], strict=True)
            asked |= {(text_of[q], g) if direction == "t2i" else (text_of[g], q) for q, g in pairs}
        candidates += len(asked)
    assert matched == candidates  # the union of both directions, equal texts once
    if len(set(directions)) == 2:
        assert matched < 0.8 * len(reranking)


def test_a_perfect_second_stage_puts_what_is_right_first() -> None:
    part = SLICES[0]
    table = rerank(config(top_k=23), [part])
    right = part.relevance.toarray()
    places = (pd.Index(ids).get_indexer(table[name]) for ids, name in
              ((part.text_ids, "query_id"), (part.image_ids, "gallery_id")))  # fmt: skip
    table["score"] = right[tuple(places)].astype(float)
    scores = reordered(SCORES, table)
    judged = judge_slices([part], scores, [1])["val"]["vehicle"]
    assert (judged[0].values["map_at_10"] == 1.0).all()
    matching, _ = match_slices([part], scores)
    before, _ = match_slices([part], SCORES)
    assert matching["right"].sum() > before["right"].sum()


def test_equal_texts_get_equal_orders_for_one_match() -> None:
    part = SLICES[0]
    same = Slice("val", "vehicle", part.text_ids, [part.texts[0]] * 17, part.image_ids, part.relevance)
    seen = len(BACKBONE.pairs_seen)
    table = rerank(config(top_k=23, formula="itm"), [same])
    assert sum(pairs for pairs, _ in BACKBONE.pairs_seen[seen:]) == 23
    orders = table.sort_values("rank").groupby("query_id")["gallery_id"].agg(tuple)
    assert orders.nunique() == 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_adaption_scores_are_those_of_each_text_alone(mirrored: bool) -> None:
    table = rerank(config("adaption", top_k=8, anchors=4, neighbours=3, mirrored=mirrored))
    turned = embed_images(BACKBONE, PIXELS[:, :, ::-1].copy()).astype(np.float64)
    for part in SLICES:
        texts = MEMBER.texts.take(part.text_ids).astype(np.float64)
        for number, text in enumerate(part.text_ids):
            rows = table[table["query_id"] == text]
            at = IMAGES.rows(rows["gallery_id"])
            images = MEMBER.images.matrix[at].astype(np.float64)
            views = turned[at] if mirrored else None
            expected = slow_adaption.adaption_scores(texts[number], images, views, 4, 3)
            np.testing.assert_allclose(rows["second"], expected, atol=1e-5)
            assert rows["score"].tolist() == rows["second"].tolist()
    assert (table["rank"] != table["first_rank"]).any()


def test_adaption_needs_no_matching_head() -> None:
    check_reranker(config("adaption"), {"m": small_member("chinese_clip")})


def test_a_member_without_head_is_refused_and_those_with_one_are_named() -> None:
    members = {"m": small_member("chinese_clip"), "other": small_member("open_clip")}  # which is `Matching` here
    message = "'m', whose backbone 'chinese_clip' has no image-text matching head; members that have one: other"
    with pytest.raises(ValueError, match=message):
        check_reranker(config(), members)
    checkpoint = Checkpoint(BACKBONE, small_member("chinese_clip"), {}, {"weights": "these"})
    with pytest.raises(ValueError, match="members that have one: none"):
        rerank_slices(SLICES, lambda _: pytest.fail("computed"), MEMBER, config(), "cpu", checkpoint, IMAGES)


def test_other_weights_and_other_images_are_refused() -> None:
    other = Checkpoint(BACKBONE, small_member(), {}, {"weights": "others"})
    with pytest.raises(OtherOriginError, match="weights"):
        rerank_slices(SLICES, SCORES, MEMBER, config(), "cpu", other, IMAGES)
    repacked = SimpleNamespace(pixels=PIXELS, fingerprint="repacked", rows=IMAGES.rows)
    with pytest.raises(OtherOriginError, match="images"):
        rerank_slices(SLICES, SCORES, MEMBER, config(), "cpu", CHECKPOINT, repacked)


def test_a_re_ranking_of_other_scores_is_refused() -> None:
    table = rerank(config())
    stale = [
        table.assign(fused=table["fused"] + 0.01),
        table[table["group"] != "vehicle"],
        table[table["query_id"] != SLICES[0].text_ids[3]],
        table.assign(gallery_id="gone.jpg"),
    ]
    for wrong in stale:
        with pytest.raises(ValueError, match="not of these scores of val/vehicle: run the re-rank node again"):
            reordered(SCORES, wrong)(SLICES[0])
    assert reordered(SCORES, None) is SCORES
    nothing = MatrixScores(np.zeros((0, 3))), None
    assert reordered(lambda _: nothing, table)(EMPTY[0])[0] is nothing[0]


def test_a_saved_table_gives_the_same_order(tmp_path) -> None:
    table = rerank(config())
    table.to_parquet(tmp_path / "reranking.parquet")
    again = pd.read_parquet(tmp_path / "reranking.parquet")
    first, second = (rank_slices(SLICES, reordered(SCORES, one), 23) for one in (table, again))
    pd.testing.assert_frame_equal(first, second)
