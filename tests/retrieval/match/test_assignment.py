"""Assignments reach the best sum of all one-to-one matchings, square and rectangular, in bounded memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import matching as reference
from xmodal_kedro.retrieval.match import MatchTooLargeError, assign, best_of_each
from xmodal_kedro.retrieval.match import assignment as module
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_best_sum_of_all_matchings(seed, n, m, ties):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 3, size=(n, m)) / 2 if ties else rng.standard_normal((n, m))).astype(np.float32)
    match = assign(MatrixScores(scores))
    assert len(set(match.gallery_rows.tolist())) == len(match.query_rows) == min(n, m)
    assert match.query_rows.tolist() == sorted(set(match.query_rows.tolist()))
    assert match.scores.tolist() == scores[match.query_rows, match.gallery_rows].tolist()
    assert match.scores.sum(dtype=np.float64) == pytest.approx(reference.best_sum(scores.astype(np.float64)), abs=1e-6)
    partner = match.gallery_row_of()
    assert (partner >= 0).sum() == min(n, m)
    assert partner[match.query_rows].tolist() == match.gallery_rows.tolist()


@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (9, 9)])
def test_uneven_tiles_and_a_known_permutation(shape, monkeypatch):
    monkeypatch.setattr(module, "MATCH_TILE", (4, 3))
    rng = np.random.default_rng(0)
    n, m = shape
    pairs = min(n, m)
    vectors = rng.standard_normal((pairs, 32))
    queries = np.concatenate([vectors, rng.standard_normal((n - pairs, 32))])
    gallery = np.concatenate([vectors, rng.standard_normal((m - pairs, 32))])
    rows, columns = rng.permutation(n), rng.permutation(m)
    match = assign(EmbeddingScores(queries[rows], gallery[columns]))
    assert [columns[g] for g in match.gallery_rows] == [rows[q] for q in match.query_rows]


def test_one_to_one_undoes_a_hub():
    scores = np.array([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3], [0.9, 0.1, 0.7]])
    assert best_of_each(MatrixScores(scores)).gallery_rows.tolist() == [0, 0, 0]
    assert assign(MatrixScores(scores)).gallery_rows.tolist() == [1, 0, 2]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_match(shape):
    for match in (assign(MatrixScores(np.zeros(shape))), best_of_each(MatrixScores(np.zeros(shape)))):
        assert len(match.query_rows) == 0
        assert match.gallery_row_of().tolist() == [-1] * shape[0]


def test_too_large_is_refused_before_memory_is_taken():
    scores = MatrixScores(np.zeros((30, 40)))
    with pytest.raises(MatchTooLargeError, match=r"30 queries with 40 items takes a matrix of 9600 bytes; max_bytes"):
        assign(scores, max_bytes=9599)
    assert len(assign(scores, max_bytes=9600).query_rows) == 30
