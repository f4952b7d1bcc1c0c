"""The dense and the sparse solver agree, and the check repairs whatever candidates leave out."""

import numpy as np
import pytest
import torch
from scipy import sparse

from tests.reference import matching as reference
from tests.retrieval.match.judging import judged, vectors
from xmodal_kedro.retrieval.match import assign, assignment, candidates, check, dense, graph, tiles
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Tile, Transposed, WeightedScores

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["random", "pairs", "clusters", "duplicates", "hubs", "narrow"])
@pytest.mark.parametrize("shape", [(300, 300), (260, 390), (390, 260)])
def test_sparse_equals_the_dense_solver(kind, shape, monkeypatch):
    monkeypatch.setattr(tiles, "WIDTH", 128)  # several uneven tiles and chunks
    for module in (candidates, check):
        monkeypatch.setattr(module, "WIDTH", 128)
        monkeypatch.setattr(module, "height", lambda device: 64)
    monkeypatch.setattr(candidates, "CHUNK", 256)
    monkeypatch.setattr(dense, "BYTES", 0)  # whatever the candidates are worth
    queries, gallery = vectors(1, *shape, kind)
    source = EmbeddingScores(queries, gallery)
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    judged(assign(source, method="sparse"), exact, best=reference.dense(exact))


def collapsed(kind, n, m):
    """Two sides [n, D], [m, D] whose scores have hardly more than one or two ranks."""
    rng = np.random.default_rng(12)
    if kind == "line":
        sides = [rng.standard_normal((length, 1)) for length in (n, m)]
    elif kind in ("plane", "circle"):
        sides = [rng.standard_normal((length, 2)) for length in (n, m)]
    else:
        c, w = rng.standard_normal((2, 64))
        drawn = [(rng.standard_normal((length, 1)), rng.standard_normal((length, 64))) for length in (n, m)]
        sides = [c + 0.05 * z * w + 0.001 * noise for z, noise in drawn]
    if kind not in ("line", "plane"):
        sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    return [side.astype(np.float32) for side in sides]


@pytest.mark.parametrize("kind", ["line", "plane", "circle", "near one rank"])
@pytest.mark.parametrize("shape", [(600, 600), (400, 450)])
@pytest.mark.parametrize("method", ["auto", "sparse"])
def test_vectors_that_have_collapsed_are_matched_over_all_pairs(kind, shape, method):
    """The sparse solver would take minutes: some rows have no partner among the best of each."""
    queries, gallery = collapsed(kind, *shape)
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    match = assign(EmbeddingScores(queries, gallery), method=method)
    judged(match, exact, best=reference.dense(exact))
    if method == "auto" or shape == (600, 600):  # with items to spare, some graphs are good enough
        assert match.certificate.edges == shape[0] * shape[1]


def test_candidates_tell_how_many_rows_they_leave_alone():
    nothing = tiles.Forbidden(None, torch.device("cpu"))
    same = np.tile(np.arange(200.0), (200, 1))  # all rows prefer the same columns; columns know no better
    assert candidates.find_candidates(MatrixScores(same), nothing, 5).alone > 100
    source = EmbeddingScores(*vectors(16, 200, 230, "random"))
    assert candidates.find_candidates(source, nothing, 20).alone == 0
    assert candidates._alone(np.array([0, 1, 3, 6, 10]), (4, 3)) == 2  # two columns for four rows
    assert candidates._alone(np.array([1, 2]), (2, 3)) == 1  # a row without any


@pytest.mark.parametrize("shape", [(300, 340), (340, 300)])
@pytest.mark.parametrize("part", [False, True])
def test_all_pairs_at_once_of_every_source(shape, part):
    """What is a sum of products, what is a matrix, and what knows pairs alone: the same scores up to fp64."""
    rng = np.random.default_rng(13)
    first, second = (EmbeddingScores(*vectors(seed, *shape, "random", d)) for seed, d in ((14, 24), (15, 7)))
    mixed = WeightedScores([first, second], [0.3, 0.7])
    matrix = MatrixScores(rng.standard_normal(shape))

    class PairsAlone:
        shape, device, tile, pairs = matrix.shape, matrix.device, matrix.tile, matrix.pairs

    for source in (first, mixed, Transposed(mixed), matrix, Transposed(matrix), PairsAlone()):
        n, m = source.shape
        rows, columns = torch.arange(n), torch.arange(m)
        if part:
            rows, columns = rows[::3], columns[1::2]
            source = tiles.Part(source, rows, columns)
        for turned in (False, True):
            seen, noise = dense._matrix(Transposed(source) if turned else source)
            exact = source.pairs(*torch.cartesian_prod(*(torch.arange(k) for k in source.shape)).T).view(source.shape)
            apart = np.abs((seen.T if turned else seen) - exact.numpy()).max()
            assert apart <= noise <= 1e-11
        assert dense.is_cheap(source) == (not isinstance(getattr(source, "source", source), PairsAlone))


@pytest.mark.parametrize("kind", ["random", "duplicates"])
def test_sparse_with_groups_and_forbidden_pairs_equals_the_dense_solver(kind):
    n, m = 300, 340
    queries, gallery = vectors(2, n, m, kind)
    rng = np.random.default_rng(3)
    forbidden = sparse.random_array((n, m), density=0.2, rng=rng).astype(bool).tolil()
    forbidden[5] = True  # cannot be matched
    forbidden[:, 7] = True
    rows, columns = rng.integers(0, 4, n), rng.integers(0, 4, m)
    forbidden[rows == 1] = True
    forbidden[np.ix_(rows == 1, (columns == 1).nonzero()[0][:20])] = False  # twenty items for many more queries
    allowed = ~forbidden.toarray() & (rows[:, None] == columns)
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    source = EmbeddingScores(queries, gallery)
    match = assign(source, forbidden=forbidden, query_groups=rows, gallery_groups=columns, method="sparse")
    judged(match, exact, allowed, best=reference.dense(exact, allowed))
    assert match.certificate.unmatched > 0
    assert f"{match.certificate.unmatched} cannot be matched" in str(match.certificate)


def test_groups_that_lie_together_and_that_are_thinly_spread():
    n, groups = 700, 70
    queries, gallery = vectors(4, n, n, "random")
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    for labels in (np.arange(n) // (n // groups), np.arange(n) % groups, np.arange(n) % 2):
        match = assign(EmbeddingScores(queries, gallery), query_groups=labels, gallery_groups=labels, method="sparse")
        allowed = labels[:, None] == labels
        judged(match, exact, allowed, best=reference.dense(exact, allowed))


def test_the_check_repairs_a_candidate_graph_that_misses_the_optimum(monkeypatch):
    queries, gallery = vectors(5, 400, 400, "hubs")
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    monkeypatch.setattr(dense, "BYTES", 0)
    found = candidates.find_candidates

    def few(scores, forbidden, k):
        return found(scores, forbidden, 2)

    monkeypatch.setattr(assignment, "find_candidates", few)
    match = assign(EmbeddingScores(queries, gallery), method="sparse")
    judged(match, exact, best=reference.dense(exact))
    assert match.certificate.rounds > 1
    assert match.certificate.violating[0] > 0


def test_the_check_repairs_candidates_without_any_matching(monkeypatch):
    """All candidates lie in one column: every row but one is alone at first."""
    scores = np.random.default_rng(6).standard_normal((60, 60)).astype(np.float32)

    def one_column(source, forbidden, k):
        return candidates.Candidates(np.arange(60) * 60 + 3, float(scores.min()), float(scores.max()))

    monkeypatch.setattr(assignment, "find_candidates", one_column)
    match = assign(MatrixScores(scores), method="sparse")
    judged(match, scores, best=reference.dense(scores))
    assert match.certificate.rounds > 1


def test_equal_scores_of_a_larger_set_take_one_round(monkeypatch):
    monkeypatch.setattr(dense, "BYTES", 0)
    vectors = np.ones((700, 4), dtype=np.float32)
    match = assign(EmbeddingScores(vectors, vectors), method="sparse")
    assert (len(match.query_rows), match.certificate.value, match.certificate.gap) == (700, 2800.0, pytest.approx(0.0))
    assert match.certificate.rounds == 1


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (1, 50), (40, 50)])
@pytest.mark.parametrize("coarse", [0.3, 5.0])
def test_the_check_sees_through_the_noise_of_tiles(shape, coarse):
    """Tiles that are too low by all that their noise admits hide no pair whose score exceeds the prices."""
    scores = np.random.default_rng(11).standard_normal((40, 50)).astype(np.float32)

    class Low(MatrixScores):
        def tile(self, queries, gallery, *, coarse=False):
            error = noises[coarse]
            return Tile(super().tile(queries, gallery).scores - error, torch.full(shape, error))

    noises = {True: coarse, False: 0.1}
    rows_price = np.sort(scores, axis=1)[:, -3].astype(np.float64)  # the best two of every row exceed it
    solution = graph.Solution(np.arange(40), 0.0, rows_price, np.zeros(50), 0.0, 0.0)
    found = check.check(Low(scores), tiles.Forbidden(None, torch.device("cpu")), solution, 5.0)
    above = (scores > rows_price[:, None]).nonzero()
    assert sorted(found.keys.tolist()) == (above[0] * 50 + above[1]).tolist()
    assert found.count == 80
    assert found.smallest == (rows_price[:, None] - scores).min()
