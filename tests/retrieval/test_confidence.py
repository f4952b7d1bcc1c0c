"""First places of slices against dense scores, and rankings with the probabilities of their calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from xmodal_kedro.reporting.reliability import reliability_figure
from xmodal_kedro.retrieval.calibrate import Calibration
from xmodal_kedro.retrieval.confidence import calibrate_slices, first_places, with_probability
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.ensemble import Member, rank_slices
from xmodal_kedro.retrieval.judge import embedding_scores
from xmodal_kedro.retrieval.scores import MatrixScores
from xmodal_kedro.retrieval.slices import Slice


def a_slice(split: str, group: str, count: int, extra: int, seed: int) -> Slice:
    """Text n is right for image n, and some for more; the last texts and images are right for nothing."""
    rng = np.random.default_rng(seed)
    relevance = np.zeros((count + extra, count + extra), bool)
    relevance[np.arange(count), np.arange(count)] = True
    relevance[: count // 3, 1] = True
    ids = [[f"{split}/{group}/{side}{n}" for n in range(count + extra)] for side in ("t", "i")]
    texts = [f"text {n}" for n in rng.integers(0, count, count + extra)]
    return Slice(split, group, ids[0], texts, ids[1], sparse.csr_array(relevance))


SLICES = [
    a_slice("dev", "car", 60, 2, 1),
    a_slice("dev", "person", 40, 0, 2),
    a_slice("val", "car", 50, 0, 3),
    a_slice("val", "person", 30, 3, 4),
]


def a_member(name: str, noise: float, seed: int, weights: str = "w") -> Member:
    """Texts that lie around the image of the same number, more or less far."""
    rng = np.random.default_rng(seed)
    sides: dict[str, list] = {"text": [[], []], "image": [[], []]}
    for part in SLICES:
        images = rng.normal(size=(len(part.image_ids), 8))
        texts = images + noise * rng.uniform(0, 2, (len(images), 1)) * rng.normal(size=images.shape)
        for side, ids, matrix in (("text", part.text_ids, texts), ("image", part.image_ids, images)):
            sides[side][0] += ids
            sides[side][1].append(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    made = {
        side: Embeddings(
            ids, np.concatenate(parts).astype(np.float32),
            {"member": name, "side": side, "fingerprints": {"weights": f"{weights} of {name}"}},
        )
        for side, (ids, parts) in sides.items()
    }  # fmt: skip
    return Member(name, made["text"], made["image"])


MEMBERS = [a_member("good", 0.5, 1), a_member("poor", 1.5, 2)]
SCORES = embedding_scores(MEMBERS[0].texts, MEMBERS[0].images)


def cosines(part: Slice, member: Member) -> np.ndarray:
    return member.texts.take(part.text_ids).astype(float) @ member.images.take(part.image_ids).astype(float).T


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("part", SLICES, ids=lambda part: f"{part.split}-{part.group}")
def test_first_places_and_strangers_are_those_of_dense_scores(part: Slice, direction: str) -> None:
    found = first_places(part, SCORES, MEMBERS)[direction]
    turn = np.transpose if direction == "i2t" else np.asarray
    good, poor, truth = (turn(m) for m in (*(cosines(part, one) for one in MEMBERS), part.relevance.toarray()))
    asks = np.flatnonzero(truth.any(axis=1))
    assert len(found.right) == len(asks)
    for row, query in enumerate(asks):
        first, wrong = good[query].argmax(), np.where(truth[query], -np.inf, good[query]).argmax()
        assert found.right[row] == truth[query, first]
        np.testing.assert_allclose(found.evidence[row], [good[query, first], poor[query, first]], atol=1e-6)
        np.testing.assert_allclose(found.strangers[row], [good[query, wrong], poor[query, wrong]], atol=1e-6)
    expected = part.clusters[asks] if direction == "t2i" else asks
    assert found.clusters.tolist() == expected.tolist()


def test_without_a_wrong_item_there_is_no_stranger() -> None:
    part = Slice(
        "dev", "g", SLICES[0].text_ids[:2], ["a", "b"], SLICES[0].image_ids[:2], sparse.csr_array([[1, 1], [0, 1]])
    )
    found = first_places(part, SCORES, MEMBERS)["t2i"]
    assert np.isnan(found.strangers[0]).all()
    assert np.isfinite(found.strangers[1]).all()


def test_the_first_places_are_those_of_the_ensemble_whatever_its_scale() -> None:
    part = SLICES[0]
    strange = np.random.default_rng(5).normal(size=part.relevance.shape) * 1e-4
    found = first_places(part, lambda _: (MatrixScores(strange), None), MEMBERS)["t2i"]
    asks = np.flatnonzero(part.relevance.toarray().any(axis=1))
    best = strange[asks].argmax(axis=1)
    np.testing.assert_allclose(found.evidence[:, 0], cosines(part, MEMBERS[0])[asks, best], atol=1e-6)


def test_every_name_direction_and_group_is_calibrated_for_json() -> None:
    found = json.loads(json.dumps(calibrate_slices(SLICES, MEMBERS, SCORES, 0.6)))
    assert found["origins"] == {"good": "w of good", "poor": "w of poor"}
    assert list(found["calibrated"]) == ["ensemble", "good", "poor"]
    for name, directions in found["calibrated"].items():
        assert {d: list(groups) for d, groups in directions.items()} == {d: ["car", "person"] for d in ("t2i", "i2t")}
        for groups in directions.values():
            for entry in groups.values():
                assert list(entry["weights"]) == (["good", "poor"] if name == "ensemble" else [name])
                assert entry["asked"] == 0.6
                assert {"queries", "accuracy", "calibration_error", "brier"} <= entry["val"].keys()
    assert found["calibrated"]["good"]["t2i"]["car"]["threshold"]["cosine"] < 1
    figure = reliability_figure(found)
    drawn = [line.name for line in figure.data if line.name and line.visible is True]
    assert drawn == ["ensemble, car", "ensemble, person"] * 2
    assert reliability_figure({"calibrated": {}}).to_json()


def test_without_truth_on_dev_nothing_is_calibrated() -> None:
    assert calibrate_slices(SLICES[2:], MEMBERS, SCORES, 0.9)["calibrated"] == {}


def test_first_places_of_a_ranking_get_their_probability_and_say_where_no_match_is() -> None:
    calibration = json.loads(json.dumps(calibrate_slices(SLICES, MEMBERS, SCORES, 0.6)))
    calibration["calibrated"]["ensemble"]["i2t"]["person"]["threshold"] = None
    ranking = rank_slices(SLICES, SCORES, 3).sample(frac=1, random_state=0).reset_index(drop=True)
    found, reasons = with_probability(ranking, calibration, MEMBERS)
    assert reasons == []
    assert list(found.columns) == [*ranking.columns, "probability", "match"]
    assert (found["probability"].notna() == (found["rank"] == 1)).all()
    silent = (found["direction"] == "i2t") & (found["group"] == "person")
    assert (found["match"].notna() == ((found["rank"] == 1) & ~silent)).all()
    entry = calibration["calibrated"]["ensemble"]["t2i"]["car"]
    part = SLICES[2]
    good, poor = (cosines(part, member) for member in MEMBERS)
    rows = found.query("split == 'val' and group == 'car' and direction == 't2i' and rank == 1").set_index("query_id")
    for number, text in enumerate(part.text_ids):
        pair = np.array([[good[number].max(), poor[number, good[number].argmax()]]])
        expected = Calibration(tuple(entry["weights"].values()), entry["bias"]).probability(pair)[0]
        assert rows.loc[text, "probability"] == pytest.approx(expected, abs=1e-6)
        assert rows.loc[text, "match"] == (rows.loc[text, "probability"] >= entry["threshold"]["probability"])
    assert 0 < rows["match"].sum() < len(rows)


def test_probabilities_do_not_change_with_the_gallery_around_a_pair() -> None:
    calibration = calibrate_slices(SLICES, MEMBERS, SCORES, 0.6)
    part = SLICES[2]
    best = cosines(part, MEMBERS[0])[:10].argmax(axis=1)
    kept = sorted(set(best.tolist()))
    small = Slice("test", "car", part.text_ids[:10], part.texts[:10], [part.image_ids[i] for i in kept],
                  part.relevance[:10][:, kept])  # fmt: skip
    large, less = (with_probability(rank_slices([one], SCORES, 1), calibration, MEMBERS)[0] for one in (part, small))
    said = [one.query("direction == 't2i'")["probability"].to_numpy()[:10] for one in (large, less)]
    assert said[0].tolist() == said[1].tolist()


def test_other_weights_and_unknown_groups_have_no_probability_and_say_why() -> None:
    calibration = calibrate_slices([part for part in SLICES if part.group == "car"], MEMBERS, SCORES, 0.6)
    ranking = rank_slices(SLICES, SCORES, 2)
    found, reasons = with_probability(ranking, calibration, [MEMBERS[0], a_member("poor", 1.5, 2, "new")])
    assert found["probability"].isna().all()
    assert found["match"].isna().all()
    assert reasons == ["the calibration is of other members or other weights: run --pipelines=ensemble to calibrate"]
    found, reasons = with_probability(ranking, calibration, MEMBERS)
    assert reasons == [f"{d} of group person was not calibrated: dev has no pair of it" for d in ("t2i", "i2t")]
    assert found[found["group"] == "person"]["probability"].isna().all()
    assert found.query("group == 'car' and rank == 1")["probability"].notna().all()
