"""Tiles stay within the noise they state, and exact scores are the same bits however they are asked for."""

import numpy as np
import pytest
import torch

from tests.reference.ranks import exact_scores
from xmodal_kedro.retrieval import scores as scores_module
from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, ScoreSource, Transposed, WeightedScores

torch.set_num_threads(1)


def vectors(seed, n, d, scale=1.0):
    made = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return scale * made / np.linalg.norm(made, axis=1, keepdims=True)


def everything(source: ScoreSource) -> torch.Tensor:
    n, m = source.shape
    return source.pairs(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)).view(n, m)


def sources() -> dict[str, ScoreSource]:
    one = EmbeddingScores(vectors(0, 9, 33), vectors(1, 14, 33))
    two = EmbeddingScores(vectors(2, 9, 7, 20.0), vectors(3, 14, 7, 3.0))
    ready = MatrixScores(np.random.default_rng(4).standard_normal((9, 14)))
    named = {f"{name} of {i}": normalised(s, name, 0.03) for i, s in enumerate([one, two]) for name in
             ["none", "row_l2", "zscore", "minmax", "softmax"]}  # fmt: skip
    mixed = WeightedScores([named["softmax of 0"], named["zscore of 1"], ready], [0.5, 0.0, 2.0])
    return named | {"matrix": ready, "mixed": mixed, "turned": Transposed(mixed), "twice": Transposed(Transposed(one))}


@pytest.mark.parametrize(("name", "source"), sources().items(), ids=list(sources()))
def test_tiles_stay_within_their_noise(name, source):
    exact = everything(source)
    assert exact.dtype == torch.float64
    n, m = source.shape
    assert exact.shape == (n, m)
    for queries in [slice(0, n), slice(2, 3), slice(3, n)]:
        for gallery in [slice(0, m), slice(m - 1, m), slice(0, 5)]:
            scores, noise = source.tile(queries, gallery)
            assert scores.dtype == torch.float32
            error = (scores.double() - exact[queries, gallery].float().double()).abs()
            assert bool((error <= noise).all())
            scores.fill_(7.0)  # the caller's to overwrite
    assert torch.equal(everything(source), exact)
    assert torch.equal(source.tile(slice(0, n), slice(0, m)).scores.round(decimals=3), exact.float().round(decimals=3))


def test_exact_scores_are_exact():
    queries, gallery = vectors(0, 4, 65), vectors(1, 5, 65)
    expected = [[float(v) for v in row] for row in exact_scores(queries, gallery)]
    assert np.allclose(everything(EmbeddingScores(queries, gallery)), expected, rtol=0, atol=4e-16)


@pytest.mark.parametrize("d", [0, 1, 2, 3, 31, 64, 100])
def test_exact_scores_do_not_depend_on_what_else_is_asked(d):
    source = EmbeddingScores(np.random.default_rng(0).random((20, d)), np.random.default_rng(1).random((30, d)))
    together = everything(source)
    alone = [[float(source.pairs(torch.tensor([q]), torch.tensor([g]))[0]) for g in range(30)] for q in range(20)]
    assert together.tolist() == alone
    assert everything(Transposed(source)).T.tolist() == alone


def test_repeated_pairs_are_computed_once(monkeypatch):
    queries, gallery = vectors(0, 6, 8)[[0, 1, 0, 2, 1, 0]], vectors(1, 5, 8)[[3, 3, 1, 0, 3]]
    source = EmbeddingScores(queries, gallery)
    expected = everything(source)
    asked = []
    products = source._products
    monkeypatch.setattr(scores_module, "MANY", 10)
    monkeypatch.setattr(source, "_products", lambda q, g: asked.append(len(q)) or products(q, g))
    assert torch.equal(everything(source), expected)
    assert asked == [3 * 3]


def test_identical_vectors_tie_wherever_they_stand():
    base = vectors(5, 3, 512)
    gallery = np.concatenate([base, vectors(6, 50, 512), base])
    exact = everything(EmbeddingScores(vectors(7, 8, 512), gallery))
    assert torch.equal(exact[:, :3], exact[:, -3:])


def test_lower_precision_of_products_widens_the_noise():
    source = EmbeddingScores(vectors(0, 3, 16), vectors(1, 3, 16))
    narrow = source.noise
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert source.noise > narrow + 2.0**-8
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_and_shapes_are_checked():
    one, other = MatrixScores(np.zeros((2, 3))), MatrixScores(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="different shapes"):
        WeightedScores([one, other], [0.5, 0.5])
    for weights in ([0.0], [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="weights must be finite"):
            WeightedScores([one], weights)
    with pytest.raises(ValueError, match="1 score sources, but 2 weights"):
        WeightedScores([one], [0.5, 0.5])
