"""Ranks and top tables equal the loops over the definition, whatever the tiles, ties, duplicates and sizes."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.reference import ranks as reference
from xmodal_kedro.retrieval import one_way
from xmodal_kedro.retrieval import rank as rank_module
from xmodal_kedro.retrieval.counts import count_by_passes, count_by_search, count_reaching
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank, rank_both, ranking_table
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Tile, Transposed, WeightedScores
from xmodal_kedro.retrieval.top import highest

torch.set_num_threads(1)


def by_query(ranking) -> list[list[int]]:
    """Relevant ranks as lists, one per query."""
    return [part.tolist() for part in np.split(ranking.relevant_ranks, ranking.relevance.indptr[1:-1])]


@st.composite
def problems(draw, levels=(-1.0, -0.5, 0.0, 0.25, 1.0)):
    """Small problems full of ties: few distinct coordinates, few distinct vectors."""
    n, m, d = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    distinct = rng.choice(levels, size=(draw(st.integers(1, 5)), d)).astype(np.float32)
    queries = distinct[rng.integers(len(distinct), size=n)]
    gallery = distinct[rng.integers(len(distinct), size=m)]
    relevance = rng.random((n, m)) < draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    return queries, gallery, relevance


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 6), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_ranks_and_top_are_the_definition(problem, k, height, width, pessimistic):
    queries, gallery, relevance = problem
    truth = reference.exact_scores(queries, gallery)
    ties = "pessimistic" if pessimistic else "optimistic"
    forward, backward = rank_both(
        EmbeddingScores(queries, gallery), sparse.csr_matrix(relevance), k, ties=ties, tile=(height, width)
    )
    assert by_query(forward) == reference.relevant_ranks(truth, relevance, pessimistic)
    assert forward.top_rows.tolist() == reference.top(truth, k)
    turned = [list(column) for column in zip(*truth, strict=True)]
    assert by_query(backward) == reference.relevant_ranks(turned, relevance.T, pessimistic)
    assert backward.top_rows.tolist() == reference.top(turned, k)
    for q, row in enumerate(forward.top_rows):
        assert forward.top_scores[q].tolist() == [np.float32(float(truth[q][g])) for g in row]


@settings(max_examples=25, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_rank(problem, random):
    queries, gallery, relevance = problem
    rows, columns = list(range(len(queries))), list(range(len(gallery)))
    random.shuffle(rows)
    random.shuffle(columns)
    ranking = rank(EmbeddingScores(queries, gallery), sparse.csr_array(relevance), 3)
    shuffled = rank(EmbeddingScores(queries[rows], gallery[columns]), sparse.csr_array(relevance[rows][:, columns]), 3)
    before = by_query(ranking)
    # relevant items that tie swap places among themselves, so the set of ranks is what must stay
    assert [sorted(ranks) for ranks in by_query(shuffled)] == [sorted(before[row]) for row in rows]
    assert shuffled.top_scores.tolist() == ranking.top_scores[rows].tolist()


def near_ties(rng, n=40, m=300, d=96):
    """Scores that differ by less than a tile's rounding, and vectors that occur several times."""
    centre = rng.standard_normal(d)
    queries = (centre + 1e-3 * rng.standard_normal((n, d))).astype(np.float32)
    gallery = (centre + 1e-7 * rng.standard_normal((m, d))).astype(np.float32)
    gallery[rng.integers(m, size=m // 3)] = gallery[0]
    queries, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    return queries, gallery


@pytest.mark.parametrize("share", [0.01, 0.3], ids=["few relevant", "many relevant"])
def test_tile_size_cannot_change_a_rank_within_the_noise(share):
    rng = np.random.default_rng(0)
    queries, gallery = near_ties(rng)
    relevance = sparse.csr_array(rng.random((40, 300)) < share)
    assert np.diff(relevance.indptr).max() > (8 if share > 0.1 else 0)
    scores = EmbeddingScores(queries, gallery)
    truth = reference.exact_scores(queries[:5], gallery)
    spread = np.ptp([float(v) for v in truth[0]])
    assert spread < scores.noise  # the tile alone could decide nothing
    results = [rank_both(scores, relevance, 5, tile=tile) for tile in [(512, 2048), (7, 31), (1, 300), (40, 1)]]
    for forward, backward in results[1:]:
        for one, other in zip(results[0], (forward, backward), strict=True):
            assert np.array_equal(one.relevant_ranks, other.relevant_ranks)
            assert np.array_equal(one.top_rows, other.top_rows)
            assert np.array_equal(one.top_scores, other.top_scores)
    # fp64 sums round at 1e-17, which can only matter between vectors that are not the same: none so close here
    assert by_query(results[0][0])[:5] == reference.relevant_ranks(truth, relevance.toarray()[:5])
    assert results[0][0].top_rows[:5].tolist() == reference.top(truth, 5)


def test_one_direction_equals_both():
    rng = np.random.default_rng(1)
    scores = EmbeddingScores(rng.standard_normal((23, 16)), rng.standard_normal((57, 16)))
    relevance = sparse.random_array((23, 57), density=0.1, rng=rng, format="csr")
    forward, backward = rank_both(scores, relevance, 4, tile=(5, 11))
    for both, alone in [(forward, rank(scores, relevance, 4)), (backward, rank(Transposed(scores), relevance.T, 4))]:
        assert np.array_equal(both.top_rows, alone.top_rows)
        assert np.array_equal(both.relevant_ranks, alone.relevant_ranks)
        assert both.shape == alone.shape


@pytest.mark.parametrize("name", ["none", "row_l2", "zscore", "minmax", "softmax"])
def test_tile_size_cannot_change_a_rank_of_a_mixture(name):
    rng = np.random.default_rng(2)
    members = [EmbeddingScores(*near_ties(rng, 30, 90, d)) for d in (24, 33)]
    members.append(EmbeddingScores(*(x / 4 for x in (rng.standard_normal((30, 16)), rng.standard_normal((90, 16))))))
    mixed = WeightedScores([normalised(member, name, Setting(0.05)) for member in members], [0.2, 0.5, 0.3])
    relevance = sparse.csr_array(rng.random((30, 90)) < 0.1)
    one, other = (rank_both(mixed, relevance, 6, tile=tile) for tile in [(512, 2048), (3, 13)])
    for first, second in zip(one, other, strict=True):
        assert np.array_equal(first.relevant_ranks, second.relevant_ranks)
        assert np.array_equal(first.top_rows, second.top_rows)
    rows, columns = torch.arange(30).repeat_interleave(90), torch.arange(90).repeat(30)
    exact = mixed.pairs(rows, columns).view(30, 90).tolist()
    assert by_query(one[0]) == reference.relevant_ranks(exact, relevance.toarray())
    assert one[0].top_rows.tolist() == reference.top(exact, 6)


def test_all_scores_equal():
    same = np.ones((6, 3), dtype=np.float32)
    relevance = np.eye(6, dtype=bool)
    relevance[0, 3] = True
    ranking = rank(EmbeddingScores(same, same), sparse.csr_array(relevance), 2)
    assert by_query(ranking) == [[5, 6], [6], [6], [6], [6], [6]]  # behind every other item
    assert ranking.top_rows.tolist() == [[0, 1]] * 6
    kind = rank(EmbeddingScores(same, same), sparse.csr_array(relevance), 2, ties="optimistic")
    assert by_query(kind) == [[1, 2], [1], [1], [1], [1], [1]]


BAD_TILES = [(-1, 5), (0, 5), (5, 0), (2.5, 1), (3,), (1, 2, 3), 5, "12", ()]


@pytest.mark.parametrize("ranks", [rank, rank_both])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ties": "optimist"}, "ties is 'optimist'; it must be one of pessimistic, optimistic"),
        *(({"k": k}, f"k is {k!r}; it must be a whole number, 0 or more") for k in (2.5, -1, "3", None)),
        *(({"tile": tile}, f"tile is {tile!r}; it must be two whole numbers, 1 or more") for tile in BAD_TILES),
    ],
)
def test_arguments_are_refused_with_what_is_allowed(ranks, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ranks(MatrixScores(np.zeros((2, 3))), sparse.csr_array(np.eye(2, 3)), **given)


def test_whole_numbers_may_be_numpys():
    scores = MatrixScores(np.arange(6.0).reshape(2, 3))
    found = rank(scores, None, np.int64(2), tile=[np.int32(1), np.int64(2)])
    assert found.top_rows.tolist() == [[2, 1], [2, 1]]


class Vague(MatrixScores):
    """A source that does not know some of its tiles' scores, and says so by an infinite bound on their error."""

    def __init__(self, matrix: np.ndarray, where: str) -> None:
        super().__init__(matrix)
        self.where = where

    def tile(self, queries, gallery, *, coarse=False):
        scores, noise = super().tile(queries, gallery, coarse=coarse)
        rows, columns = torch.arange(queries.start, queries.stop), torch.arange(gallery.start, gallery.stop)
        if self.where == "rows":
            noise = torch.where(rows[:, None] % 3 == 0, torch.inf, 0.0)
        elif self.where == "places":
            noise = torch.where((rows[:, None] * 7 + columns) % 5 == 0, torch.inf, 0.0)
        elif self.where == "everywhere" or coarse:
            noise = noise + torch.inf
        elif self.where == "huge":
            noise = noise + 3e38
        return Tile(torch.where(noise > 0, torch.randn(scores.shape), scores), noise)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("where", ["everywhere", "rows", "places", "coarse tiles", "huge"])
@pytest.mark.parametrize(("m", "k"), [(5, 3), (90, 3), (90, 90)])
def test_scores_whose_error_has_no_bound_are_decided_exactly(where, m, k, ties):
    rng = np.random.default_rng(m)
    matrix = rng.integers(-20, 20, size=(23, m)) / 8
    relevance = sparse.csr_array(rng.random((23, m)) < 0.2)
    for tile in ((512, 1536), (7, 40)):
        found = rank_both(Vague(matrix, where), relevance, k, ties=ties, tile=tile)
        for one, expected in zip(found, rank_both(MatrixScores(matrix), relevance, k, ties=ties), strict=True):
            assert np.array_equal(one.top_rows, expected.top_rows)
            assert np.array_equal(one.top_scores, expected.top_scores)
            assert np.array_equal(one.relevant_ranks, expected.relevant_ranks)
        blind = rank(Vague(matrix, where), None, k, tile=tile)
        assert np.array_equal(blind.top_rows, rank(MatrixScores(matrix), None, k).top_rows)


def test_an_error_that_is_bounded_by_nothing_at_all_is_refused():
    class Broken(MatrixScores):
        def tile(self, queries, gallery, *, coarse=False):
            scores, noise = super().tile(queries, gallery, coarse=coarse)
            return Tile(scores, noise + torch.nan)

    with pytest.raises(ValueError, match="query rows 0 to 3 and gallery rows 0 to 2 is bounded by NaN"):
        rank(Broken(np.zeros((6, 3))), None, 2, tile=(4, 4))


def test_more_ties_at_place_k_than_spare_candidates():
    gallery = np.repeat(np.eye(2, dtype=np.float32), 40, axis=0)
    queries = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    ranking = rank(EmbeddingScores(queries, gallery), None, 3, tile=(2, 7))
    assert ranking.top_rows.tolist() == [[40, 41, 42], [0, 1, 2]]
    assert ranking.relevant_ranks is None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (1, 1)])
def test_empty_and_single(shape):
    n, m = shape
    scores = EmbeddingScores(np.ones((n, 2), np.float32), np.ones((m, 2), np.float32))
    for ranking in rank_both(scores, sparse.csr_array(np.ones(shape, dtype=bool)), 10):
        assert ranking.relevant_ranks.tolist() == [1] * (n * m)
        assert ranking.top_rows.shape == (ranking.shape[0], min(10, ranking.shape[1]))


def test_relevance_may_hold_zeros_duplicates_and_unsorted_columns():
    scores = MatrixScores(np.array([[0.1, 0.9, 0.5]]))
    messy = sparse.coo_array((np.array([1, 0, 1, 1]), (np.zeros(4, int), np.array([2, 1, 0, 2]))), shape=(1, 3))
    ranking = rank(scores, messy, 3)
    assert ranking.relevance.indices.tolist() == [0, 2]
    assert ranking.relevant_ranks.tolist() == [3, 2]


def test_a_score_that_is_not_finite_is_named():
    vectors = np.ones((5, 2), np.float32)
    vectors[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 of the gallery is not finite"):
        EmbeddingScores(np.ones((2, 2)), vectors)
    with pytest.raises(ValueError, match=r"row 3 of the queries \('d'\) is not finite"):
        EmbeddingScores(vectors, np.ones((2, 2)), ids=(list("abcde"), ["x", "y"]))
    with pytest.raises(ValueError, match="query row 3 and gallery row 1"):
        MatrixScores(vectors)

    class Broken(MatrixScores):
        def tile(self, queries, gallery, *, coarse=False):
            found = super().tile(queries, gallery, coarse=coarse)
            if queries.start <= 1 < queries.stop and gallery.start <= 4 < gallery.stop:
                found.scores[1 - queries.start, 4 - gallery.start] = np.nan
            return found

    with pytest.raises(ValueError, match="query row 1 and gallery row 4"):
        rank(Broken(np.zeros((3, 6))), None, 2, tile=(2, 4))


def test_shapes_that_do_not_fit_are_refused():
    scores = MatrixScores(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"relevance has shape \(3, 2\)"):
        rank(scores, sparse.csr_array((3, 2)), 2)
    with pytest.raises(ValueError, match="same member"):
        EmbeddingScores(np.zeros((2, 3)), np.zeros((2, 4)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 12), st.integers(0, 30), st.booleans())
def test_both_ways_of_counting_are_the_loop(seed, rows, slots, width, ties):
    rng = np.random.default_rng(seed)
    exact = torch.from_numpy(rng.integers(0, 6, size=(rows, width)) / 4.0)
    noise = torch.full((1, 1), 0.25)
    tile = Tile((exact + torch.from_numpy(rng.uniform(-0.25, 0.25, exact.shape))).float(), noise)
    closer = torch.from_numpy(rng.choice([-0.125, 0.0, 0.125], exact.shape))
    thresholds = torch.from_numpy(np.sort(rng.integers(0, 6, size=(rows, slots)) / 4.0, axis=1))
    if slots:
        thresholds[0, slots // 2 :] = torch.inf
    expected = [
        [sum((s >= t) if ties else (s > t) for s in exact[row].tolist()) for t in thresholds[row].tolist()]
        for row in range(rows)
    ]
    for shape in [(1, 1), (rows, 1), (rows, width)]:
        for count in (count_by_passes, count_by_search, count_reaching) if slots else (count_by_passes, count_reaching):
            for quick in (None, lambda r, c: None, lambda r, c: ((exact[r, c] + closer[r, c]).float(), 0.125)):
                found = count(
                    Tile(tile.scores, noise.expand(shape)), thresholds, lambda r, c: exact[r, c], ties=ties, quick=quick
                )
                assert found.tolist() == expected


@pytest.mark.parametrize("levels", [9, 100_000])  # with many ties, and with next to none
def test_few_entries_of_later_tiles_are_looked_at(levels, monkeypatch):
    rng = np.random.default_rng(levels)
    dense = rng.integers(0, levels, size=(90, 1500)).astype(np.float32)
    looked_at = []
    padded = one_way.by_rows
    monkeypatch.setattr(one_way, "by_rows", lambda *given: looked_at.append(len(given[1])) or padded(*given))
    found = rank_both(MatrixScores(dense), None, 7, tile=(40, 300))
    for ranking, scores in zip(found, (dense, dense.T), strict=True):
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
        assert np.array_equal(ranking.top_rows, expected)
        assert np.array_equal(ranking.top_scores, np.take_along_axis(scores, expected, 1))
    assert levels == 9 or max(looked_at) > 0


@pytest.mark.parametrize("width", [5, 700, 1000])
def test_best_of_a_tile(width):
    values = torch.from_numpy(np.random.default_rng(width).integers(0, 50, size=(4, width))).float()
    found, columns = highest(values, 10)
    assert torch.equal(found, values.sort(dim=1, descending=True).values[:, :10])
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row)) == len(row) for row in columns.tolist())


def test_memory_does_not_grow_with_n_times_m(monkeypatch):
    seen = []
    scores = EmbeddingScores(torch.randn(600, 4), torch.randn(900, 4))
    tile = scores.tile
    monkeypatch.setattr(
        scores, "tile", lambda q, g, coarse=False: seen.append((coarse, q, g)) or tile(q, g, coarse=coarse)
    )
    monkeypatch.setattr(rank_module, "tile_shape", lambda device: (100, 200))
    rank_both(scores, sparse.eye_array(600, 900, format="csr"), 5)
    assert len(seen) == len(set(map(str, seen)))  # no score twice, but for those that a coarse tile leaves in doubt
    assert len({str(place) for _, *place in seen}) == 6 * 5
    assert max((q.stop - q.start) * (g.stop - g.start) for _, q, g in seen) == 100 * 200


def test_ranking_table_names_rows():
    ranking = rank(MatrixScores(np.array([[0.25, 0.5], [1.0, 0.0]])), None, 2)
    table = ranking_table(["q0", "q1"], ["a", "b"], ranking)
    assert table.to_dict("list") == {
        "query_id": ["q0", "q0", "q1", "q1"],
        "rank": [1, 2, 1, 2],
        "gallery_id": ["b", "a", "a", "b"],
        "score": [0.5, 0.25, 1.0, 0.0],
    }
    assert table["score"].dtype == np.float32
    with pytest.raises(ValueError, match="3 query ids"):
        ranking_table(["a", "b", "c"], ["a", "b"], ranking)


@pytest.mark.parametrize("doubt", [1, 128, 10**9], ids=["coarse alone", "as it comes", "fine alone"])
def test_coarse_tiles_cannot_change_a_rank(monkeypatch, doubt):
    rng = np.random.default_rng(3)
    queries, gallery = near_ties(rng, 60, 200, 32)
    queries[30:], gallery[100:] = rng.standard_normal((30, 32)), rng.standard_normal((100, 32))
    relevance = rng.random((60, 200)) < np.where(np.arange(60) % 20 == 0, 0.3, 0.01)[:, None]
    scores = EmbeddingScores(queries, gallery)
    exact = scores.pairs(torch.arange(60).repeat_interleave(200), torch.arange(200).repeat(60)).view(60, 200)
    monkeypatch.setattr(rank_module, "DOUBT", doubt)
    monkeypatch.setattr(one_way, "CROWDED", 0 if doubt == 1 else 16)
    forward, backward = rank_both(scores, sparse.csr_array(relevance), 5, tile=(17, 64))
    assert by_query(forward) == reference.relevant_ranks(exact.tolist(), relevance)
    assert by_query(backward) == reference.relevant_ranks(exact.T.tolist(), relevance.T)
    assert forward.top_rows.tolist() == reference.top(exact.tolist(), 5)
    assert backward.top_rows.tolist() == reference.top(exact.T.tolist(), 5)
