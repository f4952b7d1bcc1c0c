"""Tiles stay within the noise they state, and exact scores are the same bits however they are asked for."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from tests.reference.ranks import exact_scores, relevant_ranks
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import (
    EmbeddingScores,
    MatrixScores,
    Reordered,
    ScoreSource,
    Transposed,
    WeightedScores,
)
from xmodal_kedro.retrieval.scores import embedding as scores_module

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
    named = {f"{name} of {i}": normalised(s, name, Setting(0.03)) for i, s in enumerate([one, two]) for name in
             ["none", "row_l2", "zscore", "minmax", "softmax"]}  # fmt: skip
    mixed = WeightedScores([named["softmax of 0"], named["zscore of 1"], ready], [0.5, 0.0, 2.0])
    new = named | {"matrix": ready, "mixed": mixed, "turned": Transposed(mixed), "twice": Transposed(Transposed(one))}
    for name in ("softmax of 0", "row_l2 of 1", "matrix", "mixed"):
        new[f"reordered {name}"] = reordered_at_random(new[name], k=5)
    return new | {
        "all reordered": reordered_at_random(ready, k=14),
        "reordered turned": Transposed(new["reordered mixed"]),
    }


def reordered_at_random(source: ScoreSource, k: int) -> Reordered:
    n, m = source.shape
    rng = np.random.default_rng(5)
    candidates = np.stack([rng.permutation(m)[:k] for _ in range(n)])
    return Reordered(source, torch.from_numpy(candidates), torch.from_numpy(rng.standard_normal((n, k))))


@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
@pytest.mark.parametrize(("name", "source"), sources().items(), ids=list(sources()))
def test_tiles_stay_within_their_noise(name, source, coarse):
    exact = everything(source)
    assert exact.dtype == torch.float64
    n, m = source.shape
    assert exact.shape == (n, m)
    for queries in [slice(0, n), slice(2, 3), slice(3, n)]:
        for gallery in [slice(0, m), slice(m - 1, m), slice(0, 5)]:
            scores, noise = source.tile(queries, gallery, coarse=coarse)
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


def reordered(scores, candidates, second) -> Reordered:
    source = scores if isinstance(scores, EmbeddingScores) else MatrixScores(np.array(scores))
    return Reordered(source, torch.tensor(candidates), torch.tensor(second, dtype=torch.float64))


def test_candidates_share_out_their_own_scores_and_the_tail_keeps_its_own():
    row = [0.5, 0.25, 1.0, 0.75, 0.125]
    found = everything(reordered([row, row], [[2, 3, 0], [0, 3, 2]], [[-3.0, -1.0, -2.0], [0.1, 0.2, 9.0]]))
    assert found.float().tolist() == [[0.75, 0.25, 0.5, 1.0, 0.125], [0.5, 0.25, 1.0, 0.75, 0.125]]


def test_equal_new_scores_keep_the_first_order_and_equal_pairs_of_scores_tie():
    row = [0.5, 0.5, 0.75, 0.25]
    ((a, b, c, d),) = everything(reordered([row], [[0, 1, 2]], [[1.0, 1.0, 1.0]])).tolist()
    assert a == b
    assert (np.float32(a), c, d) == (0.5, 0.75, 0.25)
    # the two equal ones go ahead together: both get what the last of them would get
    ((a, b, c, d),) = everything(reordered([row], [[0, 1, 2]], [[1.0, 1.0, 0.0]])).tolist()
    assert a == b > c > d
    assert c == np.nextafter(0.5, 1.0)
    assert a == np.nextafter(c, 1.0)


def test_what_the_second_stage_tells_apart_is_strict_and_stays_before_a_tail_that_ties():
    row = [0.5, 0.5, 0.5, 0.5]  # nothing is known, and the last is no candidate
    found = everything(reordered([row], [[0, 1, 2]], [[1.0, 3.0, 2.0]]))[0]
    assert found.argsort(descending=True).tolist()[:2] == [1, 2]
    assert found[1] > found[2] > found[0] > found[3] == 0.5
    assert found.float().tolist() == row
    top = rank(reordered([row], [[0, 1, 2]], [[1.0, 3.0, 2.0]]), None, 4)
    assert top.top_rows.tolist() == [[1, 2, 0, 3]]


def test_no_candidate_drops_behind_a_tail_that_ties_and_stands_before_it():
    row = [0.5, 0.5, 0.5, 0.9]
    top = rank(reordered([row], [[3, 1]], [[-1.0, 1.0]]), None, 4)
    assert top.top_rows.tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("tile", [None, (1, 1), (3, 4), (100, 5)])
def test_ranks_of_a_new_order_do_not_depend_on_tiles(tile):
    queries, gallery = vectors(0, 7, 16), vectors(1, 20, 16)
    gallery[5], gallery[11] = gallery[2], gallery[2]
    source = EmbeddingScores(queries, gallery)
    top = rank(source, None, 6).top_rows
    second = torch.from_numpy(np.random.default_rng(2).standard_normal(top.shape))
    moved = Reordered(source, torch.from_numpy(top), second)
    found = rank(moved, None, 9, tile=tile)
    expected = np.take_along_axis(top, second.numpy().argsort(axis=1)[:, ::-1], axis=1)
    assert found.top_rows[:, :6].tolist() == expected.tolist()
    assert found.top_rows[:, 6:].tolist() == rank(source, None, 9).top_rows[:, 6:].tolist()
    truth = np.random.default_rng(3).random((7, 20)) < 0.2
    ranks = rank(moved, csr_array(truth), 0, tile=tile).relevant_ranks
    assert ranks.tolist() == [one for of_query in relevant_ranks(everything(moved).tolist(), truth) for one in of_query]
    assert sorted(everything(moved)[0].float().tolist()) == sorted(everything(source)[0].float().tolist())


def test_no_candidates_no_rows_and_nonsense():
    empty = reordered(np.zeros((2, 3)), np.zeros((2, 0), int), np.zeros((2, 0)))
    assert everything(empty).tolist() == [[0.0] * 3] * 2
    assert reordered(np.zeros((0, 3)), np.zeros((0, 2), int), np.zeros((0, 2))).shape == (0, 3)
    with pytest.raises(ValueError, match=r"\(2, 2\), their scores \(2, 1\)"):
        reordered(np.zeros((2, 3)), [[0, 1], [0, 1]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="query row 1 is not a finite"):
        reordered(np.zeros((2, 3)), [[0, 1], [0, 1]], [[1.0, 0.0], [1.0, np.inf]])
    with pytest.raises(ValueError, match="same candidate twice"):
        reordered(np.zeros((1, 3)), [[1, 1]], [[1.0, 0.0]])
