"""Statistics of rows and columns equal dense fp64, for every kind of source, with large offsets and uneven tiles."""

import numpy as np
import pytest
import torch

from xmodal_kedro.retrieval.normalise import extremes, log_sum_exp, moments
from xmodal_kedro.retrieval.normalise import statistics as module
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, ScoreSource, Transposed

torch.set_num_threads(1)


def sources(seed: int = 0) -> list[tuple[ScoreSource, np.ndarray]]:
    rng = np.random.default_rng(seed)
    left, right = (rng.normal(0.2, 0.3, size=(count, 9)).astype(np.float32) for count in (23, 41))
    matrix = rng.normal(1000.0, 0.5, size=(23, 41)).astype(np.float32)
    found: list[tuple[ScoreSource, np.ndarray]] = [
        (EmbeddingScores(left, right), left.astype(np.float64) @ right.astype(np.float64).T),
        (MatrixScores(matrix), matrix.astype(np.float64)),
    ]
    return found + [(Transposed(source), dense.T) for source, dense in found]


@pytest.mark.parametrize("tile", [(512, 2048), (5, 7)])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", range(4))
def test_equal_dense(kind: int, dim: int, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_TILE", tile)
    source, dense = sources()[kind]
    of = moments(source, dim)
    np.testing.assert_allclose(of.mean, dense.mean(dim), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of.std, dense.std(dim), rtol=1e-6)
    np.testing.assert_allclose(of.l2, np.linalg.norm(dense, axis=dim), rtol=1e-9)
    low, high = extremes(source, dim)
    np.testing.assert_allclose(low, dense.min(dim), rtol=1e-6)
    np.testing.assert_allclose(high, dense.max(dim), rtol=1e-6)
    shift = np.random.default_rng(1).normal(0.0, 5.0, size=dense.shape[dim])
    temperature = 0.05 if kind % 2 == 0 else 2.0
    inner = dense / temperature + np.expand_dims(shift, 1 - dim)
    top = inner.max(dim)
    expected = top + np.log(np.exp(inner - np.expand_dims(top, dim)).sum(dim))
    found = log_sum_exp(source, temperature, dim, torch.from_numpy(shift))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(
        log_sum_exp(source, temperature, dim), log_sum_exp(source, temperature, dim, torch.zeros(len(shift)).double())
    )


def test_a_sum_whose_largest_term_comes_last_does_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_TILE", (2, 3))
    scores = np.linspace(-1.0, 1.0, 35).reshape(5, 7).astype(np.float32)
    wide = scores.astype(np.float64) / 1e-4
    for dim in (0, 1):
        np.testing.assert_allclose(log_sum_exp(MatrixScores(scores), 1e-4, dim), wide.max(dim), rtol=1e-6)
        turned = MatrixScores(scores[::-1, ::-1].copy())
        np.testing.assert_allclose(log_sum_exp(turned, 1e-4, dim), wide.max(dim)[::-1], rtol=1e-6)


def test_moments_of_products_take_no_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = sources()[0]
    monkeypatch.setattr(EmbeddingScores, "tile", None)
    assert moments(source).mean.shape == (23,)
    assert moments(Transposed(source)).mean.shape == (41,)
