"""Intervals equal the one-resample-at-a-time bootstrap, cover as often as they claim, and respect clusters."""

import numpy as np
import pytest

from tests.reference import bootstrap as reference
from xmodal_kedro.retrieval import bootstrap as module
from xmodal_kedro.retrieval.bootstrap import interval, paired_difference


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("n_clusters", [None, 1, 7])
@pytest.mark.parametrize("n", [1, 8, 21])
def test_equals_the_loop(statistic, n_clusters, n, monkeypatch):
    rng = np.random.default_rng(n)
    values = rng.integers(0, 6, size=(n, 2)) / 4.0
    clusters = np.arange(n) if n_clusters is None else rng.integers(0, n_clusters, size=n)
    low, high = interval(values, statistic, clusters=None if n_clusters is None else clusters, resamples=60, seed=5)
    for column in range(2):
        take = np.mean if statistic == "mean" else np.median
        drawn = reference.resampled(values[:, column], clusters, take, 60, 5)
        assert np.allclose([low[column], high[column]], np.percentile(drawn, [2.5, 97.5]))
    monkeypatch.setattr(module, "AT_ONCE", 64)  # blocks of few resamples
    assert np.array_equal(interval(values, statistic, clusters=clusters, resamples=60, seed=5), (low, high))


def test_copies_of_a_query_add_no_certainty():
    values = np.random.default_rng(0).random(40)
    copies = np.repeat(values, 5)
    assert np.allclose(interval(copies, clusters=np.repeat(np.arange(40), 5)), interval(values))
    low, high = interval(copies)
    narrow, wide = interval(values)
    assert high - low < 0.6 * (wide - narrow)


@pytest.mark.parametrize(("statistic", "truth"), [("mean", 0.3), ("median", 0.5)])
def test_covers_the_truth_about_as_often_as_it_says(statistic, truth):
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        draw = rng.random(60)
        values = (draw < truth).astype(float) if statistic == "mean" else draw
        low, high = interval(values, statistic, resamples=200, seed=trial)
        inside += bool(low <= truth <= high)
    assert 0.89 <= inside / 200 <= 0.99


def test_seed_decides_and_none_is_nan():
    values = np.random.default_rng(2).random(30)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)
    assert np.isnan(interval(values, resamples=0)).all()
    assert np.isnan(interval(np.empty((0, 3)))).all()
    assert np.shape(interval(np.empty((0, 3)))) == (2, 3)
    assert interval(np.full(9, 0.5)) == (0.5, 0.5)


def test_paired_p_is_the_share_of_sign_changes():
    a = np.array([0.9, 0.4, 0.8, 0.7, 0.5, 0.9, 0.2, 0.6])
    b = np.array([0.5, 0.5, 0.3, 0.6, 0.5, 0.4, 0.3, 0.1])
    found = paired_difference(a, b, resamples=20_000)
    assert found.p == pytest.approx(reference.randomisation_p((a - b).tolist()), abs=0.01)
    assert found.value == pytest.approx(np.mean(a - b))
    assert found.low < found.value < found.high
    turned = paired_difference(b, a, resamples=20_000)
    assert (turned.value, turned.p) == (pytest.approx(-found.value), found.p)


def test_paired_clusters_flip_together():
    rng = np.random.default_rng(3)
    once = rng.normal(0.1, 1.0, size=9)
    copies, clusters = np.repeat(once, 20), np.repeat(np.arange(9), 20)
    zero = np.zeros(len(copies))
    assert paired_difference(copies, zero, clusters=clusters).p == pytest.approx(
        reference.randomisation_p(once.tolist()), abs=0.02
    )
    assert paired_difference(copies, zero).p < paired_difference(copies, zero, clusters=clusters).p


def test_no_difference_at_all():
    same = np.array([0.5, 1.0, 0.0])
    assert paired_difference(same, same) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="same queries twice"):
        paired_difference(same, same[:2])
    with pytest.raises(ValueError, match="same queries twice"):
        paired_difference([], [])


def test_p_is_fair_without_a_difference():
    rng = np.random.default_rng(4)
    p = [paired_difference(rng.random(30), rng.random(30), resamples=300, seed=i).p for i in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert 0.4 <= np.mean(p) <= 0.6
