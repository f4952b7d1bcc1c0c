"""Trials equal the dense mixture wherever they claim certainty, and the search finds what an exhaustive grid finds."""

import numpy as np
import pytest
import torch
from scipy import sparse

from tests.reference import metrics as reference
from tests.reference.fusion import greedy
from xmodal_kedro.retrieval.bootstrap import paired_difference
from xmodal_kedro.retrieval.fuse import DevPart, search_weights
from xmodal_kedro.retrieval.fuse.weights import BAG, dev_clusters
from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores

torch.set_num_threads(1)


def members(seed, n=40, m=60, strengths=(0.5, 0.4, 0.1)) -> tuple[dict[str, MatrixScores], np.ndarray]:
    """Members that see the truth, each through its own noise."""
    rng = np.random.default_rng(seed)
    relevance = rng.random((n, m)) < 0.05
    return {
        f"m{i}": MatrixScores(strength * relevance + 0.2 * rng.standard_normal((n, m)))
        for i, strength in enumerate(strengths)
    }, relevance


def dense(parts, weights, metric) -> float:
    values = []
    for sources, relevance in parts:
        mixed = sum(w * s.matrix.double().numpy() for w, s in zip(weights, sources.values(), strict=True))
        values += [
            reference.value(metric, reference.ranked(row, right))
            for row, right in zip(mixed, relevance, strict=True)
            if right.any()
        ]
    return float(np.mean(values))


def dev(*parts) -> dict[str, DevPart]:
    return {f"g{i}": DevPart(sources, sparse.csr_array(relevance)) for i, (sources, relevance) in enumerate(parts)}


@pytest.mark.parametrize("metric", ["map_at_10", "recall_at_1", "map_at_5_challenge", "ndcg_at_10"])
@pytest.mark.parametrize("candidates", [15, 60])
def test_trials_equal_the_dense_mixture(metric, candidates):
    parts = [members(0), members(1, 30, 45)]
    found = search_weights(dev(*parts), metric, step=0.25, candidates=candidates)
    names = [f"weight.m{i}" for i in range(3)]
    trials = found.trace.drop_duplicates(names)
    sure = trials[trials.certain == 1.0]
    assert len(sure) == len(trials) if candidates == 60 else len(sure) >= 1
    for row in sure.head(12).itertuples():
        weights = [getattr(row, f"_{found.trace.columns.get_loc(name) + 1}") for name in names]
        assert row.value == pytest.approx(dense(parts, weights, metric), abs=1e-12)
    assert found.value == pytest.approx(dense(parts, found.weights.values(), metric), abs=1e-12)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert found.value >= max(dense(parts, single, metric) for single in np.eye(3)) - 1e-12


def test_an_item_that_no_list_holds_is_not_overlooked():
    # a and b each have a favourite; the third item is second for both, and first for their mixture
    sources = {"a": MatrixScores(np.array([[0.7, 0.0, 0.6, 0.0]])), "b": MatrixScores(np.array([[0.0, 0.7, 0.6, 0.1]]))}
    relevance = np.array([[True, True, False, False]])
    found = search_weights(dev((sources, relevance)), "recall_at_1", candidates=1, step=0.5)
    trials = found.trace.set_index(["weight.a", "weight.b"])
    assert trials.loc[(0.5, 0.5), "certain"].tolist() == [0.0] * len(trials.loc[(0.5, 0.5)])
    assert dense([(sources, relevance)], (0.5, 0.5), "recall_at_1") == 0.0 < trials.loc[(0.5, 0.5), "value"].iloc[0]
    assert found.value == 1.0 == dense([(sources, relevance)], found.weights.values(), "recall_at_1")


def test_two_members_reach_the_best_of_the_grid():
    part = members(2, strengths=(0.6, 0.3))
    found = search_weights(dev(part), step=0.1, candidates=60)
    grid = {round(w, 1): dense([part], (w, 1 - w), "map_at_10") for w in np.linspace(0, 1, 11)}
    assert found.value >= max(grid.values()) - 0.01
    assert found.value > max(grid[0.0], grid[1.0])  # the mixture is better than both


def test_equal_values_prefer_equal_weights():
    sources, relevance = members(3, strengths=(0.5,))
    twins = {"a": sources["m0"], "b": sources["m0"], "c": sources["m0"]}
    found = search_weights(dev((twins, relevance)))
    assert list(found.weights.values()) == pytest.approx([1 / 3] * 3)


def test_a_member_without_worth_gets_nothing():
    part = members(4, n=200, strengths=(0.5, 0.0))
    found = search_weights(dev(part), candidates=60)
    assert found.weights["m1"] <= 0.2
    assert found.weights["m0"] >= 0.8


def test_one_member_and_repeated_runs():
    part = members(5, strengths=(0.5,))
    found = search_weights(dev(part))
    assert found.weights == {"m0": 1.0}
    assert len(found.trace) == 1
    again = [search_weights(dev(members(6))).trace for _ in range(2)]
    assert again[0].equals(again[1])


def test_ties_in_the_mixture_are_pessimistic():
    relevance = np.array([[True, False, False]])
    same = {"a": MatrixScores(np.full((1, 3), 0.5)), "b": MatrixScores(np.full((1, 3), 0.25))}
    found = search_weights(dev((same, relevance)), "recall_at_1")
    assert found.trace.value.tolist()[0] == 0.0 == found.value


def test_works_on_normalised_embeddings():
    rng = np.random.default_rng(7)
    queries = rng.standard_normal((25, 16))
    sources = {
        name: normalised(EmbeddingScores(queries + spread * rng.standard_normal((25, 16)), queries), "row_l2")
        for name, spread in [("sharp", 0.5), ("dull", 2.0)]
    }
    found = search_weights({"all": DevPart(sources, sparse.eye_array(25, format="csr"))}, "recall_at_1", candidates=5)
    assert found.weights["sharp"] > found.weights["dull"]
    assert set(found.trace.start) == {"equal", "sharp", "dull"}


def test_what_cannot_be_searched_is_refused():
    sources, relevance = members(8)
    with pytest.raises(ValueError, match="with a cut-off such as map_at_10, not on median_rank"):
        search_weights(dev((sources, relevance)), "median_rank")
    with pytest.raises(ValueError, match="no query of dev has a relevant item"):
        search_weights(dev((sources, np.zeros_like(relevance))))
    with pytest.raises(ValueError, match="same members"):
        search_weights(dev((sources, relevance), ({"m0": sources["m0"]}, relevance)))


@pytest.mark.parametrize("strengths", [(0.5, 0.4, 0.1), (0.3, 0.3)])
def test_greedy_selection_is_that_of_loops_over_bags(strengths):
    part = members(11, n=25, m=30, strengths=strengths)
    slow = greedy(len(strengths), BAG, lambda weights: dense([part], weights, "map_at_10"))
    found = search_weights(dev(part), method="greedy", candidates=30)
    assert list(found.weights.values()) == pytest.approx(slow)
    assert len(found.trace) == BAG * len(strengths)
    assert found.trace.groupby(found.trace.index // len(strengths)).better.sum().eq(1).all()


def test_gains_are_paired_and_over_the_best_member_and_equal_weights():
    part = members(12, n=80, strengths=(0.6, 0.3))
    found = search_weights(dev(part), candidates=60)
    assert [gain.over for gain in found.gains] == ["m0", "equal"]
    assert found.alone == {
        name: pytest.approx(dense([part], w, "map_at_10")) for name, w in zip(found.alone, np.eye(2), strict=True)
    }
    assert found.gains[0].value == pytest.approx(found.value - found.alone["m0"])
    assert found.gains[1].value == pytest.approx(found.value - dense([part], (0.5, 0.5), "map_at_10"))
    assert all(gain.low <= gain.value <= gain.high for gain in found.gains)
    assert search_weights(dev(members(5, strengths=(0.5,)))).gains == []


def test_identical_queries_are_one_draw_and_those_of_other_groups_are_others():
    sources, relevance = members(13, n=4, m=6)
    relevance[:] = np.eye(4, 6) > 0
    relevance[2] = False
    one = DevPart(sources, sparse.csr_array(relevance), np.array([0, 1, 1, 1]))
    assert dev_clusters({"a": one, "b": one}).tolist() == [0, 1, 1, 2, 3, 3]
    twice = np.repeat(np.arange(2), 10)
    wide = paired_difference(np.repeat([1.0, 0.0], 10), np.zeros(20), clusters=twice)
    assert wide.low == 0.0


def test_an_unknown_search_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no search 'random'; there are: coordinate, greedy"):
        search_weights(dev(members(0)), method="random")
