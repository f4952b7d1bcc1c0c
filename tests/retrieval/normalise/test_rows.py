"""Every normalisation of rows equals its formula, streams, keeps the order of a row and survives constant rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import normalise as reference
from xmodal_kedro.retrieval.normalise import Setting, normalisation, normalised
from xmodal_kedro.retrieval.normalise import statistics as module
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, WeightedScores

torch.set_num_threads(1)
ROWS = ["none", "row_l2", "zscore", "minmax", "softmax", "rank"]  # they look at one row at a time


def unit(rng, n: int, d: int) -> np.ndarray:
    vectors = rng.standard_normal((n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def values(source) -> np.ndarray:
    n, m = source.shape
    return source.pairs(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)).view(n, m).numpy()


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.05, 1.0]))
def test_equals_the_formula(name, seed, n, m, temperature):
    scores = np.random.default_rng(seed).normal(0.3, 0.2, size=(n, m)).astype(np.float32)
    scores[0] = scores[0, 0]  # a constant row
    found = values(normalised(MatrixScores(scores), name, Setting(temperature)))
    expected = [reference.row(name, row.tolist(), temperature) for row in scores]
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert (np.argsort(found, axis=1, kind="stable") == np.argsort(scores, axis=1, kind="stable")).all()


def test_minmax_leaves_the_unit_interval_by_rounding_alone_where_clamping_would_tie():
    rng = np.random.default_rng(4)
    centre = unit(rng, 1, 64)
    queries, gallery = (centre + spread * unit(rng, n, 64) for n, spread in ((12, 0.1), (200, 1e-5)))
    source = EmbeddingScores(queries, gallery)
    exact = values(source)
    found = values(normalised(source, "minmax"))
    slack = 2 * source.noise / np.ptp(exact, axis=1, keepdims=True)
    assert ((found >= -slack) & (found <= 1 + slack)).all()
    assert ((found < 0) | (found > 1)).any()
    assert np.array_equal(found.argsort(axis=1), exact.argsort(axis=1))


@pytest.mark.parametrize("name", ROWS)
def test_streams_over_uneven_tiles(name, monkeypatch):
    rng = np.random.default_rng(0)
    source = EmbeddingScores(unit(rng, 23, 12), unit(rng, 41, 12))
    whole = values(normalised(source, name, Setting(0.05)))
    monkeypatch.setattr(module, "CPU_TILE", (5, 7))
    assert np.allclose(values(normalised(source, name, Setting(0.05))), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_a_member_that_collapsed_does_not_disturb_the_mixture(name):
    rng = np.random.default_rng(2)
    good = EmbeddingScores(unit(rng, 9, 8), unit(rng, 20, 8))
    same = np.full((20, 300), 0.05773, dtype=np.float32)
    collapsed = EmbeddingScores(same[:9], same)
    mixed = WeightedScores(
        [normalised(good, name, Setting(0.1)), normalised(collapsed, name, Setting(0.1))], [0.5, 0.5]
    )
    alone = rank(normalised(good, name, Setting(0.1)), None, 20)
    assert np.array_equal(rank(mixed, None, 20).top_rows, alone.top_rows)


def test_first_place_formula():
    rng = np.random.default_rng(3)
    matrices = [rng.normal(size=(4, 6)).astype(np.float32) for _ in range(4)]
    mixed = WeightedScores([normalised(MatrixScores(matrix), "row_l2") for matrix in matrices], [0.25] * 4)
    rows, columns = 4, 6
    for row in range(rows):
        for column in range(columns):
            terms = [
                matrix[row, column] / np.sqrt(np.sum(np.square(matrix[row], dtype=np.float64))) for matrix in matrices
            ]
            assert values(mixed)[row, column] == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_errors_name_the_key():
    source = MatrixScores(np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"no normalisation 'l2'; there are: .*none, row_l2"):
        normalised(source, "l2")
    with pytest.raises(ValueError, match="temperature must be finite and at least"):
        normalised(source, "softmax", Setting(0.0))
    with pytest.raises(ValueError, match="gallery is empty"):
        normalised(MatrixScores(np.zeros((2, 0))), "zscore")
    with pytest.raises(ValueError, match="'zscore' is registered twice"):
        normalisation("zscore")(lambda source, temperature: source)
