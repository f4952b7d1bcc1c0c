"""Neighbourhoods against sets, one query at a time, and where lists end early, tie or repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import k_reciprocal as slow
from xmodal_kedro.retrieval.rerank import k_reciprocal
from xmodal_kedro.retrieval.rerank.k_reciprocal import jaccard, nearest, neighbourhoods, placed


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def both(
    queries: np.ndarray, gallery: np.ndarray, width: int, k: int, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores by us and by sets, and the candidates: the best by cosine."""
    cosines = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    candidates = np.argsort(-cosines, axis=1, kind="stable")[:, :width]
    first = np.take_along_axis(cosines, candidates, 1)
    known = neighbourhoods(gallery, k)
    ours = (1 - share) * jaccard(queries, gallery, candidates, known, k) + share * placed(first)
    exact = gallery.astype(np.float64)
    expected = [
        slow.scores(query, exact, rows.tolist(), scores.tolist(), k, share)
        for query, rows, scores in zip(queries.astype(np.float64), candidates, first, strict=True)
    ]
    return ours, np.array(expected), candidates


@pytest.mark.parametrize("block", [1, 7, 2048])
@pytest.mark.parametrize(
    ("images", "width", "k"), [(40, 10, 6), (40, 10, 20), (40, 3, 5), (30, 30, 4), (5, 5, 12), (6, 4, 1), (1, 1, 10)]
)
def test_scores_are_those_of_the_definitions(
    images: int, width: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k_reciprocal, "BLOCK", block)
    ours, expected, _ = both(unit(7, 5, 1), unit(images, 5, 2), width, k, share=0.3)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_neighbours_of_neighbours_join_where_they_should() -> None:
    """A case in which the expansion decides: without it, scores are others."""
    gallery = unit(60, 3, 3)
    known = neighbourhoods(gallery, 6)
    order = slow.orders(gallery.astype(np.float64))
    lists = [slow.reciprocal(order, i, 6) for i in range(60)]
    assert any(slow.expanded(order, members, 6) > members for members in lists)
    np.testing.assert_allclose(known.encodings.sum(axis=1), 1.0)
    ours, expected, _ = both(unit(9, 3, 4), gallery, 12, 6, share=0.0)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(1, 12), st.floats(0, 1))
def test_repeated_items_and_ties_are_as_defined(seed: int, images: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(4, 4)).astype(np.float32) / 2  # cosines are exact, most of them tie
    gallery, queries = signs[rng.integers(0, 4, images)], signs[rng.integers(0, 4, 3)]
    ours, expected, _ = both(queries, gallery, min(images, 6), k, share)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_an_item_is_its_own_nearest_also_where_many_equal_it() -> None:
    gallery = np.repeat(unit(2, 4, 5), 6, axis=0)
    found = nearest(gallery, 3)
    assert found[:, 0].tolist() == list(range(12))
    assert found[5].tolist() == [5, 0, 1, 2]
    assert found[0].tolist() == [0, 1, 2, 3]
    assert nearest(gallery, 30).shape == (12, 12)


def test_the_whole_share_keeps_the_first_order_and_equal_scores_say_nothing() -> None:
    ours, _, _ = both(unit(6, 5, 6), unit(20, 5, 7), 8, 5, share=1.0)
    assert (np.diff(ours, axis=1) <= 0).all()
    assert ours[:, 0].tolist() == [1.0] * 6
    assert placed(np.full((2, 3), 0.7)).tolist() == [[1.0] * 3] * 2
    assert placed(np.empty((2, 0))).shape == (2, 0)


def test_a_constant_gap_between_modalities_changes_nothing() -> None:
    """Texts apart from all images by one direction that no image has: cosines fall, neighbourhoods stay."""
    images, texts = unit(30, 6, 8), unit(5, 6, 9)
    gallery = np.hstack([images, np.zeros((30, 1), np.float32)])
    near, far = (np.hstack([texts, np.full((5, 1), gap, np.float32)]) for gap in (0.0, 3.0))
    candidates = np.argsort(-(texts @ images.T), axis=1)[:, :8]
    known = neighbourhoods(gallery, 6)
    before, after = (jaccard(side, gallery, candidates, known, 6) for side in (near, far))
    np.testing.assert_allclose(before, after, atol=1e-12)


def test_a_crowd_lets_a_stranger_fall() -> None:
    rng = np.random.default_rng(11)
    crowd = unit(1, 16, 12) + 0.08 * rng.normal(size=(9, 16))
    stranger = unit(1, 16, 13)
    gallery = np.concatenate([stranger, crowd, unit(20, 16, 14)])
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    query = gallery[:1] + 0.8 * gallery[1:10].mean(0)
    query = (query / np.linalg.norm(query)).astype(np.float32)
    ours, _, candidates = both(query, gallery, 10, 9, share=0.1)
    assert candidates[0, 0] == 0
    of_crowd = (candidates[0] > 0) & (candidates[0] < 10)
    assert of_crowd.sum() >= 8
    assert (ours[0, of_crowd] > ours[0, 0]).all()
