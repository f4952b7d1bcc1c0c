"""Expanded queries against one query and one item at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import query_expansion as slow
from xmodal_kedro.retrieval.rerank.query_expansion import expanded_scores


def unit(*shape: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0, 3.0, 8.0]))
def test_scores_are_those_of_the_formula(seed: int, candidates: int, expansion: int, alpha: float) -> None:
    queries, items = unit(4, 6, seed=seed), unit(4, candidates, 6, seed=seed + 1)
    found = expanded_scores(queries, items, expansion, alpha)
    expected = [slow.scores(q, i, expansion, alpha) for q, i in zip(queries, items, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_points_away_does_not_join_even_with_the_exponent_zero() -> None:
    query = np.array([[1.0, 0.0]])
    items = np.array([[[-0.6, 0.8], [0.0, 1.0]]])
    assert expanded_scores(query, items, 2, 0.0).tolist() == [[-0.6, 0.0]]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_the_query_moves_towards_what_it_found(alpha: float) -> None:
    """Two items as near to the query: the one that is like the best item comes forward."""
    query = np.array([[1.0, 0.0, 0.0]])
    items = np.array([[[0.8, 0.6, 0.0], [0.6, -0.8, 0.0], [0.6, 0.8, 0.0]]])
    after = expanded_scores(query, items, 1, alpha)[0]
    assert after[2] > after[1]
    assert after.argmax() == 0


def test_identical_items_tie_and_a_larger_exponent_moves_less() -> None:
    queries, items = unit(3, 8, seed=1), unit(3, 6, 8, seed=2)
    items[:, 4] = items[:, 1]
    found = expanded_scores(queries, items, 3, 2.0).astype(np.float32)
    assert (found[:, 4] == found[:, 1]).all()
    plain = np.einsum("bd,bkd->bk", queries, items)
    moved = [np.abs(expanded_scores(queries, items, 3, alpha) - plain).max() for alpha in (0.0, 1.0, 4.0, 60.0)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-6
