"""Assignments reach the best sum of all one-to-one matchings, and prove it: every shape, method, rule and tie."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.reference import matching as reference
from xmodal_kedro.retrieval.match import assign, assignment, best_of_each, candidates, check, dense, graph, tiles
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Tile, Transposed, WeightedScores

torch.set_num_threads(1)
METHODS = ["dense", "sparse"]


def judged(match, scores, allowed=None, *, best):
    """Check that a match is one, reaches the best (count, sum), and that its certificate says so."""
    scores = np.asarray(scores, dtype=np.float64)
    assert match.query_rows.tolist() == sorted(set(match.query_rows.tolist()))
    assert len(set(match.gallery_rows.tolist())) == len(match.gallery_rows)
    taken = scores[match.query_rows, match.gallery_rows]
    assert match.scores == pytest.approx(taken, rel=1e-6, abs=1e-6)
    if allowed is not None:
        assert allowed[match.query_rows, match.gallery_rows].all()
    count, total = best
    scale = 1 + np.abs(scores).max(initial=0.0) * max(1, count)
    assert len(match.query_rows) == count
    assert taken.sum() == pytest.approx(total, abs=1e-9 * scale)
    proof = match.certificate
    assert proof.value == pytest.approx(total, abs=1e-9 * scale)
    assert -1e-9 * scale <= proof.gap <= 1e-9 * scale
    assert proof.violating == () or proof.violating[-1] == 0
    assert -1e-9 * scale <= proof.smallest <= 0
    assert len(proof.violating) == proof.rounds


def small_scores(seed, n, m, kind):
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return rng.integers(-1, 2, size=(n, m)).astype(np.float32) / 2
    if kind == "equal":
        return np.full((n, m), rng.standard_normal(), dtype=np.float32)
    return (rng.standard_normal((n, m)) * 10.0 ** rng.integers(-3, 4) - rng.integers(0, 50)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["ties", "equal", "any"]))
def test_best_sum_of_all_matchings(method, seed, n, m, kind):
    scores = small_scores(seed, n, m, kind)
    judged(assign(MatrixScores(scores), method=method), scores, best=reference.best_of_all(scores.astype(np.float64)))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["ties", "any"]),
    st.sampled_from([0.2, 0.6, 0.9, 1.0]),
    st.booleans(),
)
def test_as_many_pairs_as_can_be_then_the_best_sum(method, seed, n, m, kind, share, groups):
    scores = small_scores(seed, n, m, kind)
    rng = np.random.default_rng(seed)
    forbidden = rng.random((n, m)) < share
    allowed, labels = ~forbidden, {}
    if groups:
        query, gallery = rng.integers(0, 3, n), rng.integers(0, 3, m)
        allowed = allowed & (query[:, None] == gallery)
        labels = {"query_groups": query, "gallery_groups": torch.from_numpy(gallery)}
    best = reference.best_of_all(scores.astype(np.float64), allowed)
    source = MatrixScores(scores)
    judged(assign(source, forbidden=sparse.csr_array(forbidden), method=method, **labels), scores, allowed, best=best)
    by_allowed = assign(source, allowed=sparse.coo_array(~forbidden), method=method, **labels)
    judged(by_allowed, scores, allowed, best=best)
    both = assign(source, allowed=sparse.coo_array(~forbidden), forbidden=sparse.csr_matrix((n, m)), **labels)
    judged(both, scores, allowed, best=best)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("method", METHODS)
def test_larger_squares_against_all_permutations(n, method):
    scores = small_scores(n, n, n, "any")
    judged(assign(MatrixScores(scores), method=method), scores, best=reference.best_of_all(scores.astype(np.float64)))


def vectors(seed, n, m, kind, d=24):
    """Two sides of embeddings [n, d] and [m, d]."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if kind == "pairs":
        both = min(n, m)
        gallery[rng.permutation(m)[:both]] = queries[:both] + 0.7 * rng.standard_normal((both, d))
    elif kind == "clusters":
        queries, gallery = queries[rng.integers(0, 9, n)], gallery[rng.integers(0, 9, m)]
        queries = queries + 0.05 * rng.standard_normal((n, d))
    elif kind == "duplicates":
        queries, gallery = queries[rng.integers(0, 9, n)], gallery[rng.integers(0, 11, m)]
    elif kind == "hubs":
        gallery[: m // 10] *= 4
    elif kind == "narrow":
        queries, gallery = 1 + 0.01 * queries, 1 + 0.01 * gallery
    return queries.astype(np.float32), gallery.astype(np.float32)


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


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["random", "duplicates", "clusters"]), st.sampled_from(METHODS))
def test_the_order_of_rows_does_not_matter(seed, kind, method):
    queries, gallery = vectors(seed, 70, 90, kind)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(70), rng.permutation(90)
    first = assign(EmbeddingScores(queries, gallery), method=method)
    second = assign(EmbeddingScores(queries[rows], gallery[columns]), method=method)
    assert second.certificate.value == pytest.approx(first.certificate.value, rel=1e-12)
    if kind == "random":  # one optimum: the very same pairs
        assert dict(zip(rows[second.query_rows], columns[second.gallery_rows], strict=True)) == dict(
            zip(first.query_rows, first.gallery_rows, strict=True)
        )


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_tiles_may_be_wrong_by_their_noise(noise):
    """Tiles with errors as large as they admit, in the worst direction: the result stays exact."""
    scores = np.random.default_rng(7).standard_normal((150, 170)).astype(np.float32)

    class Noisy(MatrixScores):
        def tile(self, queries, gallery, *, coarse=False):
            exact = super().tile(queries, gallery).scores
            error = noise * (1.0 if coarse else 0.1)
            signs = torch.from_numpy(np.random.default_rng(8).choice([-1.0, 1.0], size=exact.shape)).float()
            return Tile(exact + error * signs, torch.full((1, exact.shape[1]), error + 1e-6))

    judged(assign(Noisy(scores), method="sparse"), scores, best=reference.dense(scores))


def test_equal_scores_of_a_larger_set_take_one_round(monkeypatch):
    monkeypatch.setattr(dense, "BYTES", 0)
    vectors = np.ones((700, 4), dtype=np.float32)
    match = assign(EmbeddingScores(vectors, vectors), method="sparse")
    assert (len(match.query_rows), match.certificate.value, match.certificate.gap) == (700, 2800.0, pytest.approx(0.0))
    assert match.certificate.rounds == 1


def test_large_offsets_and_small_differences():
    rng = np.random.default_rng(9)
    scores = (1000 + rng.integers(0, 50, size=(90, 90)) / 64).astype(np.float32)
    judged(assign(MatrixScores(scores), method="sparse"), scores, best=reference.dense(scores))


def test_one_to_one_undoes_a_hub():
    scores = np.array([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3], [0.9, 0.1, 0.7]])
    assert best_of_each(MatrixScores(scores)).gallery_rows.tolist() == [0, 0, 0]
    assert best_of_each(MatrixScores(scores)).certificate is None
    assert assign(MatrixScores(scores)).gallery_rows.tolist() == [1, 0, 2]
    assert assign(MatrixScores(scores[:2])).gallery_row_of().tolist() == [1, 0]
    assert assign(MatrixScores(scores[:, :1])).gallery_row_of().tolist() == [-1, 0, -1]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_nothing_to_match(shape, method):
    scores = MatrixScores(np.zeros(shape))
    for match in (assign(scores, method=method), best_of_each(scores)):
        assert len(match.query_rows) == 0
        assert match.gallery_row_of().tolist() == [-1] * shape[0]
    assert assign(scores, method=method).certificate.gap == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rules", ["forbidden", "allowed", "groups"])
def test_nothing_may_be_matched(method, rules):
    scores = MatrixScores(np.random.default_rng(10).standard_normal((4, 6)))
    given = {
        "forbidden": {"forbidden": sparse.csr_array(np.ones((4, 6)))},
        "allowed": {"allowed": sparse.csr_array((4, 6))},
        "groups": {"query_groups": [0] * 4, "gallery_groups": [1] * 6},
    }[rules]
    match = assign(scores, method=method, **given)
    assert match.gallery_row_of().tolist() == [-1] * 4
    assert match.certificate.value == 0.0
    assert match.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert match.certificate.bound >= match.certificate.value


def test_what_does_not_fit_is_refused():
    scores = MatrixScores(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=re.escape("'forbidden' has shape (4, 3), the scores have (3, 4)")):
        assign(scores, forbidden=sparse.csr_array((4, 3)))
    with pytest.raises(ValueError, match=re.escape("'allowed' has shape (3, 3), the scores have (3, 4)")):
        assign(scores, allowed=sparse.csr_array((3, 3)))
    with pytest.raises(ValueError, match="give query_groups and gallery_groups, or neither"):
        assign(scores, query_groups=[0, 0, 1])
    with pytest.raises(ValueError, match="gallery_groups has shape"):
        assign(scores, query_groups=[0, 0, 1], gallery_groups=[0, 0, 1])
    with pytest.raises(ValueError, match="method is 'hungarian'; it must be auto, dense or sparse"):
        assign(scores, method="hungarian")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_a_score_that_is_not_finite_is_named_by_its_rows(method, shape):
    queries, gallery = np.ones((shape[0], 2), dtype=np.float32), np.ones((shape[1], 2), dtype=np.float32)

    class Broken:
        shape, device = (len(queries), len(gallery)), torch.device("cpu")
        sound = EmbeddingScores(queries, gallery)

        def tile(self, queries, gallery, *, coarse=False):
            found = self.sound.tile(queries, gallery, coarse=coarse)
            rows, columns = np.arange(queries.start, queries.stop), np.arange(gallery.start, gallery.stop)
            found.scores[torch.from_numpy((rows[:, None] == 4) & (columns == 3))] = torch.nan
            return found

        def pairs(self, queries, gallery):
            return torch.where((queries == 4) & (gallery == 3), torch.nan, self.sound.pairs(queries, gallery))

    broken = Broken()
    named = "score of query row 4 and gallery row 3 is not a finite number"
    with pytest.raises(ValueError, match=named):
        assign(broken, method=method)
    rows, columns = np.arange(shape[0]) % 2, np.arange(1, shape[1] + 1) % 2
    with pytest.raises(ValueError, match=named):
        assign(broken, query_groups=rows, gallery_groups=columns, method=method)


@pytest.mark.parametrize("rules", ["allowed", "forbidden"])
def test_one_more_pair_is_worth_any_loss_of_score(rules):
    """Row 0 takes item 0 alone; the others would rather take the item before their own; the last may take none."""
    n = 12
    scores = np.eye(n, k=-1, dtype=np.float32)
    allowed = (np.eye(n) + np.eye(n, k=-1)).astype(bool)
    allowed[-1] = False
    pairs = sparse.csr_array(allowed if rules == "allowed" else ~allowed)
    match = assign(MatrixScores(scores), **{rules: pairs}, method="sparse")
    assert match.gallery_row_of().tolist() == [*range(n - 1), -1]
    judged(match, scores, allowed, best=(n - 1, 0.0))


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
