"""Trials by comparisons equal the dense mixture: ties, twins among queries and items, differences that fp32 loses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from tests.reference import metrics as reference
from xmodal_kedro.retrieval.fuse import DevPart
from xmodal_kedro.retrieval.fuse.trials import Trials
from xmodal_kedro.retrieval.scores import MatrixScores

METRICS = ["map_at_10", "recall_at_1", "recall_at_5", "map_at_5_challenge", "ndcg_at_3"]


def dense(matrices: list[np.ndarray], relevance: np.ndarray, weights: np.ndarray, metric: str) -> list[float]:
    values = []
    for mixture in weights:
        mixed = np.zeros(relevance.shape)
        for weight, matrix in zip(mixture, matrices, strict=True):
            mixed += weight * matrix.astype(np.float32).astype(np.float64)
        judged = [(row, right) for row, right in zip(mixed, relevance, strict=True) if right.any()]
        values.append(np.mean([reference.value(metric, reference.ranked(row, right)) for row, right in judged]))
    return values


def trials(matrices: list[np.ndarray], relevance: np.ndarray, metric: str, candidates: int) -> Trials:
    sources = {f"m{number}": MatrixScores(matrix) for number, matrix in enumerate(matrices)}
    return Trials([DevPart(sources, sparse.csr_array(relevance))], metric, candidates)


def simplex(members: int, count: int, seed: int = 0) -> np.ndarray:
    return np.concatenate([np.eye(members), np.random.default_rng(seed).dirichlet(np.ones(members), count)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_with_all_candidates_every_trial_is_exact(metric, levels):
    rng = np.random.default_rng(levels)
    relevance = rng.random((30, 25)) < 0.2
    relevance[:3] = False
    # few levels make ties: between items of a member, and between mixtures at weights such as 1/2
    matrices = [rng.integers(0, levels, relevance.shape) / levels + 0.2 * relevance for _ in range(3)]
    weights = np.concatenate([simplex(3, 20), [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]]])
    found = trials(matrices, relevance, metric, 25).judge(weights)
    np.testing.assert_allclose(found.value, dense(matrices, relevance, weights, metric), rtol=0, atol=1e-12)
    assert (found.certain == 1.0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_differences_that_fp32_cannot_see_are_decided_in_fp64(metric):
    rng = np.random.default_rng(1)
    relevance = rng.random((20, 15)) < 0.3
    noise = [rng.integers(-2, 3, relevance.shape) * 2.0**-20 for _ in range(2)]
    # one member says the opposite of the other but for the last bits, so that half and half leaves only these
    opinion = rng.integers(0, 3, relevance.shape)
    matrices = [opinion + noise[0], 3.0 - opinion + noise[1]]
    weights = np.concatenate([[[0.5, 0.5], [0.5 + 2.0**-22, 0.5 - 2.0**-22]], simplex(2, 5)])
    found = trials(matrices, relevance, metric, 15).judge(weights)
    np.testing.assert_allclose(found.value, dense(matrices, relevance, weights, metric), rtol=0, atol=1e-12)


def test_what_is_certain_by_few_candidates_equals_the_dense_mixture():
    rng = np.random.default_rng(2)
    relevance = rng.random((60, 80)) < 0.05
    matrices = [relevance + 0.3 * rng.standard_normal(relevance.shape) for _ in range(3)]
    weights = simplex(3, 30)
    for candidates in (10, 20, 40):
        sure = 0
        for row in range(len(relevance)):
            if not relevance[row].any():
                continue
            part = [matrix[row : row + 1] for matrix in matrices]
            found = trials(part, relevance[row : row + 1], "map_at_5", candidates).judge(weights)
            exact = np.array(dense(part, relevance[row : row + 1], weights, "map_at_5"))
            np.testing.assert_allclose(found.value[found.certain == 1.0], exact[found.certain == 1.0], atol=1e-12)
            sure += int((found.certain == 1.0).sum())
        assert sure > 0.5 * candidates / 40 * 30 * 55


def test_identical_queries_count_as_often_as_they_ask():
    rng = np.random.default_rng(3)
    relevance = np.repeat(rng.random((6, 12)) < 0.3, [5, 1, 1, 3, 1, 2], axis=0)
    matrices = [np.repeat(rng.random((6, 12)), [5, 1, 1, 3, 1, 2], axis=0) for _ in range(2)]
    relevance[1] = ~relevance[1]  # the same scores, another truth
    weights = simplex(2, 10)
    found = trials(matrices, relevance, "map_at_10", 12)
    assert len(found._times) < len(relevance)
    np.testing.assert_allclose(found.judge(weights).value, dense(matrices, relevance, weights, "map_at_10"), atol=1e-12)


def test_one_trial_or_many_and_small_blocks_give_the_same(monkeypatch):
    rng = np.random.default_rng(4)
    relevance = rng.random((40, 50)) < 0.1
    matrices = [relevance + rng.standard_normal(relevance.shape) for _ in range(4)]
    weights = simplex(4, 50)
    whole = trials(matrices, relevance, "map_at_10", 20).judge(weights)
    monkeypatch.setattr("xmodal_kedro.retrieval.fuse.trials.BLOCK", 40)
    monkeypatch.setattr("xmodal_kedro.retrieval.fuse.trials.TOGETHER", 7)
    monkeypatch.setattr("xmodal_kedro.retrieval.fuse.trials.PAIRS_AT_ONCE", 64)
    small = trials(matrices, relevance, "map_at_10", 20)
    np.testing.assert_array_equal(small.judge(weights).value, whole.value)
    np.testing.assert_allclose([small.judge(row[None]).value[0] for row in weights], whole.value, rtol=1e-15)
    assert (small.judge(weights).certain == whole.certain).all()


def test_a_single_candidate_each_and_a_single_item():
    assert trials([np.ones((2, 1))], np.ones((2, 1), bool), "map_at_10", 3).judge(np.ones((1, 1))).value == [1.0]
    found = trials([np.eye(3)], np.eye(3) > 0, "recall_at_1", 1).judge(np.ones((1, 1)))
    assert found.value == [1.0]
