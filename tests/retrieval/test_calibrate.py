"""Probabilities and thresholds against the papers' formulas, and what they promise on data whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import calibrate as slow
from xmodal_kedro.retrieval.calibrate import (
    Calibration,
    FirstPlaces,
    calibrate,
    calibration_error,
    choose_threshold,
    fit,
    interval,
    judged,
    lower_bound,
    reliability,
)


def drawn(count: int, seed: int, slope: float = 12.0, bias: float = -4.0, members: int = 1) -> FirstPlaces:
    """First places that are right with a known probability of their mean cosine."""
    rng = np.random.default_rng(seed)
    evidence = rng.uniform(0.0, 0.8, (count, members))
    right = rng.random(count) < Calibration((slope / members,) * members, bias).probability(evidence)
    strangers = evidence - rng.uniform(0.0, 0.3, (count, members))
    return FirstPlaces(evidence, right, np.arange(count), strangers)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(12, 300))
def test_one_member_is_platts_scaling_where_that_rises(seed: int, count: int) -> None:
    found = drawn(count, seed)
    slope, bias = slow.platt(found.evidence[:, 0], found.right)
    ours = fit(found.evidence, found.right)
    if slope > 0:
        assert ours.weights[0] == pytest.approx(slope, rel=1e-3, abs=1e-3)
        assert ours.bias == pytest.approx(bias, rel=1e-3, abs=1e-3)
    else:
        assert ours.weights == (0.0,)


def test_a_known_map_is_found_again_and_no_evidence_counts_against() -> None:
    found = drawn(20000, 1, members=2)
    ours = fit(found.evidence, found.right)
    assert ours.weights == pytest.approx((6.0, 6.0), rel=0.1)
    assert ours.bias == pytest.approx(-4.0, rel=0.1)
    assert fit(-found.evidence, found.right).weights == (0.0, 0.0)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_never_quite_sure(right: bool) -> None:
    evidence = np.random.default_rng(2).random((30, 2))
    ours = fit(evidence, np.full(30, right))
    np.testing.assert_allclose(ours.probability(evidence), 31 / 32 if right else 1 / 32, atol=1e-6)


def test_separable_and_constant_evidence_stay_finite() -> None:
    evidence = np.array([[0.1, 0.5]] * 5 + [[0.9, 0.5]] * 5)
    ours = fit(evidence, evidence[:, 0] > 0.5)
    assert np.isfinite([*ours.weights, ours.bias]).all()
    assert ours.weights[1] == 0.0
    np.testing.assert_allclose(ours.probability(evidence), [1 / 7] * 5 + [6 / 7] * 5, atol=1e-4)
    with pytest.raises(ValueError, match="no first places"):
        fit(np.empty((0, 1)), np.empty(0, bool))


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("right", ["all", "none", "one", "half"])
@pytest.mark.parametrize("level", [0.0, 0.1, -0.7, 1.0])
@pytest.mark.parametrize("count", [1, 2, 77])
def test_the_same_score_everywhere_says_how_many_are_right(kind: type, right: str, level: float, count: int) -> None:
    truth = np.arange(count) < {"all": count, "none": 0, "one": 1, "half": count // 2}[right]
    hits = int(truth.sum())
    targets = [(hits + 1) / (hits + 2)] * hits + [1 / (count - hits + 2)] * (count - hits)
    ours = fit(np.full((count, 2), level, kind), truth)
    assert ours.weights == (0.0, 0.0)
    np.testing.assert_allclose(ours.probability(np.full((1, 2), level)), np.mean(targets), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3), st.sampled_from([1e-12, 1e-8, 1e-3, 1.0, 1e30]))
def test_no_evidence_makes_a_map_that_is_no_number(seed: int, count: int, members: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    evidence = 0.3 + size * rng.integers(-2, 3, (count, members))
    right = evidence[:, 0] > rng.choice([-np.inf, 0.3, np.inf])  # all, those that score higher, or none
    ours = fit(evidence, right)
    assert np.isfinite([*ours.weights, ours.bias]).all()
    said = ours.probability(evidence)
    assert ((said > 0) & (said < 1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_evidence_that_is_no_number_is_named(bad: float) -> None:
    evidence = np.full((4, 2), 0.5)
    evidence[2, 1] = bad
    with pytest.raises(ValueError, match=r"evidence of first place 2 is .* must be finite"):
        fit(evidence, np.ones(4, bool))


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (1, 1), (3, 7), (29, 29), (58, 60), (10, 100)])
def test_bounds_are_those_of_clopper_and_pearson(hits: int, total: int) -> None:
    ours = lower_bound(np.array(hits), np.array(total), np.array(total), 0.95)
    assert float(ours) == pytest.approx(slow.bound(hits, total, 0.95), abs=1e-9)
    low, high = interval(hits, total, total)
    assert low == pytest.approx(slow.bound(hits, total, 0.975), abs=1e-9)
    assert high == pytest.approx(1 - slow.bound(total - hits, total, 0.975), abs=1e-9)


def test_equal_texts_count_once() -> None:
    assert interval(20, 40, 10) == pytest.approx(interval(5, 10, 10))
    probability, right = np.full(60, 0.9), np.ones(60, bool)
    assert choose_threshold(probability, right, np.arange(60), 0.9) is not None
    assert choose_threshold(probability, right, np.arange(60) // 6, 0.9) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.sampled_from([0.3, 0.6, 0.8]), st.integers(1, 20))
def test_the_threshold_is_the_lowest_of_all_tried(seed: int, count: int, precision: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.integers(1, levels + 1, count) / (levels + 1)  # many tie
    right = rng.random(count) < probability
    ours = choose_threshold(probability, right, np.arange(count), precision)
    expected = slow.threshold(probability, right, precision)
    assert (ours is None) == (expected is None)
    if ours is not None:
        assert ours.probability == expected
        through = probability >= expected
        assert ours.accepted == through.sum()
        assert ours.precision == pytest.approx(right[through].mean())
        assert precision <= ours.bound <= ours.precision
        shuffled = rng.permutation(count)
        assert choose_threshold(probability[shuffled], right[shuffled], np.arange(count), precision) == ours


def test_a_threshold_that_is_never_reached_is_said_plainly() -> None:
    rare = drawn(200, 3, bias=-14.0)
    entry = calibrate(rare, drawn(100, 4, bias=-14.0), ["vit"], 0.9)
    assert entry["threshold"] is None
    assert entry["note"].startswith("no threshold: dev never reaches a precision of 90 % with 95 % confidence")
    assert "precision" not in entry["val"]
    assert "accuracy" in entry["val"]
    json.dumps(entry)
    assert choose_threshold(np.empty(0), np.empty(0, bool), np.empty(0, int), 0.9) is None


def test_a_precision_that_val_does_not_reach_is_said_plainly() -> None:
    dev = drawn(800, 3)
    for precision, share in ((0.9, "90 %"), (0.995, "99.5 %")):
        assert share in calibrate(drawn(20, 3), None, ["vit"], precision)["note"]
    assert "note" not in calibrate(dev, None, ["vit"], 0.8)
    easier = drawn(800, 4, bias=-2.0)
    assert "note" not in calibrate(dev, easier, ["vit"], 0.8)
    harder = calibrate(dev, drawn(800, 4, bias=-6.0), ["vit"], 0.8)
    low, high = 100 * harder["val"]["precision_low"], 100 * harder["val"]["precision_high"]
    assert harder["note"] == (
        "val does not reach a precision of 80 %: of its first places that the threshold of dev lets through "
        f"{100 * harder['val']['precision']:.1f} % are right (95 % interval {low:.1f} to {high:.1f})"
    )
    assert harder["threshold"] is not None
    nobody = easier._replace(evidence=easier.evidence * 0.1)
    assert calibrate(dev, nobody, ["vit"], 0.8)["note"].endswith("lets none of its first places through")


def test_the_cosine_of_a_threshold_is_one_of_dev_even_where_probabilities_are_rounded_to_1() -> None:
    evidence = np.repeat([0.200, 0.201, 0.3], [300, 300, 40])[:, None]
    right = (evidence[:, 0] > 0.2005) & ((evidence[:, 0] > 0.25) | (np.arange(640) % 2 == 0))
    entry = calibrate(FirstPlaces(evidence, right, np.arange(640), evidence - 0.1), None, ["vit"], 0.9)
    assert entry["threshold"]["probability"] == 1.0  # its logit is infinite
    assert entry["threshold"]["cosine"] == 0.3


def test_the_promise_holds_on_val_and_the_cosine_is_the_same_threshold() -> None:
    kept = 0
    for seed in range(20):
        dev, val = drawn(800, seed), drawn(2000, 100 + seed)
        entry = calibrate(dev, val, ["vit"], 0.9)
        found = entry["val"]
        kept += found["precision"] >= 0.9
        assert found["calibration_error"] < 0.08
        assert found["precision_low"] <= found["precision"] <= found["precision_high"]
        through = val.evidence[:, 0] >= entry["threshold"]["cosine"] - 1e-12
        assert found["accepted"] == through.sum()
        assert found["coverage"] == pytest.approx(through.mean())
        assert found["false_alarms"] == pytest.approx(
            (val.strangers[:, 0] >= entry["threshold"]["cosine"] - 1e-12).mean()
        )
    assert kept >= 17


def test_queries_whose_items_are_all_right_have_no_stranger() -> None:
    found = drawn(300, 5)
    some = found._replace(strangers=np.where(np.arange(300)[:, None] < 200, np.nan, found.strangers))
    threshold = choose_threshold(np.full(300, 0.5), np.ones(300, bool), np.arange(300), 0.9)
    calibration = Calibration((0.0,), 0.0)  # lets everything through
    assert judged(calibration, threshold, some)["false_alarms"] == 1.0
    none = found._replace(strangers=np.full((300, 1), np.nan))
    assert "false_alarms" not in judged(calibration, threshold, none)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 6))
def test_bins_hold_every_query_once_and_never_part_equals(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.integers(0, levels + 1, count) / 7
    right = rng.random(count) < 0.5
    found = FirstPlaces(probability[:, None], right, np.arange(count), probability[:, None])
    rows = reliability(probability, found)
    assert sum(row["queries"] for row in rows) == count
    assert sum(row["queries"] * row["right"] for row in rows) == pytest.approx(right.sum())
    assert sum(row["queries"] * row["probability"] for row in rows) == pytest.approx(probability.sum())
    expected = slow.calibration_error([(row["probability"], row["right"], int(row["queries"])) for row in rows])
    assert calibration_error(rows) == pytest.approx(expected)
    order = rng.permutation(count)
    again = reliability(probability[order], FirstPlaces(found.evidence, right[order], found.clusters, found.strangers))
    assert [row["queries"] for row in again] == [row["queries"] for row in rows]


def test_many_different_probabilities_fill_ten_even_bins() -> None:
    found = drawn(1000, 6)
    rows = reliability(found.evidence[:, 0], found)
    assert [row["queries"] for row in rows] == [100] * 10
    assert all(row["right_low"] <= row["right"] <= row["right_high"] for row in rows)
