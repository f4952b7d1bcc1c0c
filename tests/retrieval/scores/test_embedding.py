"""Tiles of embeddings stay within their noise for vectors made to break it, coarse or fine, and stay narrow."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Transposed, quick_pairs
from xmodal_kedro.retrieval.scores.precision import fast_bf16

torch.set_num_threads(1)
HALF = 2.0**-8  # half of the step of bf16 above 1: numbers 1 + HALF * odd lie between two of bf16
needs_bf16 = pytest.mark.skipif(not fast_bf16(torch.device("cpu")), reason="the processor has no products of bf16")


def midpoints(rng, n, d):
    return 1 + HALF * (2 * rng.integers(0, 64, (n, d)) + 1)


KINDS = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "midpoints": midpoints,
    "signed midpoints": lambda rng, n, d: midpoints(rng, n, d) * rng.choice([-1, 1], (n, d)),
    "all rounded up": lambda rng, n, d: np.full((n, d), 1 + 3 * HALF),
    "all rounded down": lambda rng, n, d: np.full((n, d), 1 + HALF),
    "all lengths": lambda rng, n, d: rng.standard_normal((n, d)) * 10 ** rng.uniform(-12, 12, (n, 1)),
    "all sizes": lambda rng, n, d: rng.standard_normal((n, d)) * 10 ** rng.uniform(-12, 12, (n, d)),
    "subnormal": lambda rng, n, d: rng.standard_normal((n, d)) * 1e-39,
    "huge": lambda rng, n, d: rng.standard_normal((n, d)) * 1e17,
    "zero": lambda rng, n, d: np.zeros((n, d)),
    "cancelling": lambda rng, n, d: np.concatenate([a := rng.standard_normal((n, d)), -a], 1)[:, :d],
}


@pytest.mark.parametrize("coarse", [False, pytest.param(True, marks=needs_bf16)], ids=["fine", "coarse"])
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(KINDS)),
    st.sampled_from(list(KINDS)),
    st.sampled_from([(1, 1), (1, 70), (70, 1), (3, 200), (64, 64)]),
    st.sampled_from([1, 2, 7, 32, 512, 1500]),
    st.integers(0, 2**32 - 1),
)
@example("all rounded down", "all rounded down", (3, 200), 512, 0)
def test_no_score_leaves_its_noise(coarse, left, right, shape, d, seed):
    rng = np.random.default_rng(seed)
    (n, m), queries = shape, KINDS[left]
    source = EmbeddingScores(queries(rng, n, d), KINDS[right](rng, m, d))
    exact = source.queries.double() @ source.gallery.double().T
    scores, noise = source.tile(slice(0, n), slice(0, m), coarse=coarse)
    assert scores.dtype == noise.dtype == torch.float32
    assert bool(((scores.double() - exact.float().double()).abs() <= noise).all())


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(KINDS)),
    st.sampled_from(list(KINDS)),
    st.sampled_from([1, 7, 512, 1500]),
    st.integers(0, 2**32 - 1),
)
def test_no_quick_score_leaves_its_bound_either_way_round(left, right, d, seed):
    rng = np.random.default_rng(seed)
    source = EmbeddingScores(KINDS[left](rng, 9, d), KINDS[right](rng, 20, d))
    q, g = torch.from_numpy(rng.integers(0, 9, 60)), torch.from_numpy(rng.integers(0, 20, 60))
    exact = source.pairs(q, g).float().double()
    for found in (quick_pairs(source, q, g), quick_pairs(Transposed(source), g, q)):
        if found is not None:
            scores, error = found
            assert bool(((scores.double() - exact).abs() <= error).all())


def test_a_source_without_quick_scores_has_none():
    source = MatrixScores(np.ones((2, 3)))
    places = torch.zeros(1, dtype=torch.int64)
    assert quick_pairs(source, places, places) is None
    assert quick_pairs(Transposed(source), places, places) is None


@needs_bf16
def test_coarse_noise_is_not_much_more_than_the_errors_that_occur():
    rng = np.random.default_rng(0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 300, 512))]
    source = EmbeddingScores(*unit)
    everything = slice(0, 300), slice(0, 300)
    assert float(source.tile(*everything, coarse=True).noise) < 0.0055  # the two roundings could cost 0.0078 at worst
    up = np.full((300, 512), 1 + 3 * HALF)
    worst = EmbeddingScores(up, up / 512)
    coarse, noise = worst.tile(*everything, coarse=True)
    assert float((coarse - worst.tile(*everything).scores).abs().max()) > 0.5 * float(noise)


@needs_bf16
def test_a_block_of_short_vectors_has_little_noise_beside_a_long_one():
    vectors = np.random.default_rng(0).standard_normal((8, 16))
    vectors[7] *= 1e6
    source = EmbeddingScores(vectors, vectors)
    short, long = (source.tile(slice(0, end), slice(0, end), coarse=True).noise for end in (7, 8))
    assert float(short) * 1e10 < float(long)


def test_products_that_could_leave_the_range_are_not_coarse():
    vectors = np.full((2, 4), 1e18)
    source = EmbeddingScores(vectors, vectors)
    coarse, fine = (source.tile(slice(0, 2), slice(0, 2), coarse=coarse) for coarse in (True, False))
    assert torch.equal(coarse.scores, fine.scores)
    assert torch.equal(coarse.noise, fine.noise)


def test_empty_sides_have_tiles():
    source = EmbeddingScores(np.ones((0, 3)), np.ones((2, 3)))
    assert source.tile(slice(0, 0), slice(0, 2), coarse=True).scores.shape == (0, 2)
