"""One product of long vectors is the slow sum of the members, within its noise, for every mixture that allows it."""

import numpy as np
import pytest
import torch

from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Transposed, WeightedScores, linear_form

torch.set_num_threads(1)
DIMENSIONS = (24, 7, 40)


def member(seed: int, dimension: int, n: int = 21, m: int = 34) -> EmbeddingScores:
    rng = np.random.default_rng(seed)
    # lengths that differ, so that bounds which forget them are wrong
    return EmbeddingScores(
        rng.standard_normal((n, dimension)) * rng.uniform(0.1, 9, (n, 1)),
        rng.standard_normal((m, dimension)) * rng.uniform(0.1, 9, (m, 1)),
    )


def mixture(names: tuple[str, ...], weights: tuple[float, ...], turned: bool = False) -> WeightedScores:
    sources = [member(seed, d) for seed, d in enumerate(DIMENSIONS)]
    return WeightedScores(
        [normalised(Transposed(s) if turned else s, name) for s, name in zip(sources, names, strict=True)], weights
    )


def slow_sum(names: tuple[str, ...], weights: tuple[float, ...], turned: bool) -> np.ndarray:
    """In fp64, from the formulas."""
    total = 0.0
    for seed, (name, weight) in enumerate(zip(names, weights, strict=True)):
        one = member(seed, DIMENSIONS[seed])
        scores = one.queries.double().numpy() @ one.gallery.double().numpy().T
        scores = scores.T if turned else scores
        if name == "row_l2":
            scores = scores / np.sqrt((scores**2).sum(1, keepdims=True))
        if name == "zscore":
            scores = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
        total = total + weight * scores
    return np.asarray(total)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("row_l2", "row_l2", "row_l2"), (0.25, 0.25, 0.5)),
        (("zscore", "none", "row_l2"), (0.7, 0.01, 30.0)),
        (("zscore", "zscore", "zscore"), (0.0, 1.0, 0.0)),
    ],
)
def test_one_product_is_the_slow_sum_within_its_noise(names, weights, turned, coarse):
    source = mixture(names, weights, turned)
    assert source.linear() is not None
    slow = slow_sum(names, weights, turned)
    n, m = source.shape
    rows, columns = (i.flatten() for i in torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij"))
    np.testing.assert_allclose(source.pairs(rows, columns).view(n, m), slow, rtol=0, atol=1e-11 * np.abs(slow).max())
    for queries in (slice(0, 5), slice(5, n), slice(0, 5)):  # a block that comes again, and one that is uneven
        for gallery in (slice(0, 13), slice(13, m), slice(13, 13)):
            scores, noise = source.tile(queries, gallery, coarse=coarse)
            assert scores.dtype == torch.float32
            wrong = (scores.double() - torch.from_numpy(slow[queries, gallery])).abs()
            assert bool((wrong <= noise).all())
            assert float(noise.max()) < (0.2 if coarse else 1e-3) * np.abs(slow).max()


def test_noise_holds_where_all_roundings_go_one_way():
    # every entry lies halfway between two numbers of bf16, where rounding takes the most; so does their sum
    for sign, dimension in ((1.0, 507), (-1.0, 513)):
        vectors = torch.full((3, dimension), 1.0 + 2.0**-8 * (1 + sign * 2.0**-10))
        source = WeightedScores([EmbeddingScores(vectors, vectors)] * 2, [0.5, 0.5])
        scores, noise = source.tile(slice(0, 3), slice(0, 3), coarse=True)
        exact = source.pairs(torch.arange(3), torch.arange(3))
        assert bool(((scores.diagonal() - exact).abs() <= noise[:, 0]).all())


def test_terms_are_those_of_the_members_that_count():
    form = mixture(("row_l2", "none", "zscore"), (0.5, 0.0, 0.5)).linear()
    assert form is not None
    assert [term.embeddings.gallery.shape[1] for term in form.terms] == [24, 40]
    nested = linear_form(WeightedScores([mixture(("none",) * 3, (1.0, 1.0, 1.0)), member(9, 3)], [0.5, 0.5]))
    assert nested is not None
    assert len(nested.terms) == 4


def test_what_is_not_linear_says_so_and_is_mixed_tile_by_tile():
    curved = normalised(member(0, 24), "softmax")
    assert linear_form(curved) is None
    assert linear_form(MatrixScores(np.zeros((2, 2)))) is None
    mixed = WeightedScores([curved, member(1, 7)], [0.5, 0.5])
    assert mixed.linear() is None
    scores, noise = mixed.tile(slice(0, 21), slice(0, 34))
    rows, columns = (i.flatten() for i in torch.meshgrid(torch.arange(21), torch.arange(34), indexing="ij"))
    assert bool(((scores.double() - mixed.pairs(rows, columns).view(21, 34)).abs() <= noise).all())


def test_ranking_does_not_depend_on_the_tile_and_identical_items_tie():
    rng = np.random.default_rng(5)
    gallery = [rng.standard_normal((30, d)) for d in (8, 5)]
    for matrix in gallery:
        matrix[20:] = matrix[10:20]
    members = [normalised(EmbeddingScores(rng.standard_normal((12, g.shape[1])), g), "row_l2") for g in gallery]
    source = WeightedScores(members, [0.4, 0.6])
    found = [rank(source, np.eye(12, 30) > 0, 30, tile=tile) for tile in ((12, 30), (5, 7), (1, 1))]
    for other in found[1:]:
        assert (found[0].top_rows == other.top_rows).all()
        assert (found[0].relevant_ranks == other.relevant_ranks).all()
    place = np.argsort(found[0].top_rows, axis=1)
    assert (place[:, 20:] == place[:, 10:20] + 1).all()  # twins follow each other, in the order of the gallery
