"""What holds for every entry of the engine's registries, whatever the input: order, ties, tiles, copies, nothing, NaN.

New normalisations, second stages, fusions and searchers are picked up by being registered.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

import xmodal_kedro.retrieval as engine
from tests.reference import ranks as reference
from xmodal_kedro.config.ensemble import FusionConfig, RerankConfig
from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.fuse import FUSIONS, DevPart
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.metrics import judge_both, metric_names, per_query
from xmodal_kedro.retrieval.normalise import NORMALISATIONS, Setting, normalised
from xmodal_kedro.retrieval.rank import rank, rank_both
from xmodal_kedro.retrieval.rerank.stage import SECOND_STAGES, Asked, Candidates
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, ScoreSource, Transposed, WeightedScores
from xmodal_kedro.retrieval.search import build_index
from xmodal_kedro.retrieval.slices import Slice

torch.set_num_threads(1)

D = 6
NAMES = sorted(NORMALISATIONS)
WITHOUT_MODEL = sorted(name for name, stage in SECOND_STAGES.items() if not stage.head)
same_cases = settings(derandomize=True, deadline=None, max_examples=12, database=None)
sides = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 11))  # seed, N, M


class Problem:
    """Queries and gallery of unit vectors, some of them copies of others, with many-to-many truth."""

    def __init__(self, seed: int, n: int, m: int, *, copies: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.queries, self.gallery, self.bank = (unit(rng.standard_normal((rows, D))) for rows in (n, m, 5))
        if copies:
            self.queries, self.gallery = (side[rng.integers(0, len(side), len(side))] for side in self.sides)
        self.truth = sparse.csr_array(rng.random((n, m)) < 0.3)
        self.rng = rng

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        return self.queries, self.gallery

    def source(self, name: str = "none", *, backward: bool = False) -> ScoreSource:
        """Scores of the queries over the gallery, or of the gallery over the queries, normalised by their own rows."""
        queries, gallery = reversed(self.sides) if backward else self.sides
        bank = EmbeddingScores(self.bank, gallery)
        return normalised(EmbeddingScores(queries, gallery), name, Setting(0.1, neighbours=2, iterations=3, bank=bank))

    def shuffled(self) -> tuple[Problem, np.ndarray, np.ndarray]:
        rows, columns = (self.rng.permutation(len(side)) for side in self.sides)
        other = self.taken(rows, columns)
        other.bank = self.bank[self.rng.permutation(len(self.bank))]
        return other, rows, columns

    def taken(self, rows: np.ndarray, columns: np.ndarray) -> Problem:
        other = copy(self)
        other.queries, other.gallery = self.queries[rows], self.gallery[columns]
        other.truth = sparse.csr_array(self.truth.toarray()[rows][:, columns])
        return other


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def values(source: ScoreSource) -> np.ndarray:
    """All exact scores, [N, M] fp64."""
    n, m = source.shape
    return source.pairs(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)).view(n, m).numpy()


def dense(ranking) -> np.ndarray:
    """Ranks of the relevant items at their places [N, M], 0 elsewhere."""
    truth = ranking.relevance
    found = sparse.csr_array((ranking.relevant_ranks, truth.indices, truth.indptr), shape=truth.shape)
    return found.toarray()


def ranks_of(source: ScoreSource, truth, **options) -> np.ndarray:
    return dense(rank(source, truth, 0, **options))


def sizes(tile: tuple[int, int]) -> dict[str, dict[str, object]]:
    """Every constant of the engine that says how much is worked on at once, by module, for tiles of this shape."""
    h, w = tile
    match = {"WIDTH": 8, "height": lambda device: h}  # a power of two, at least the height
    return {
        "rank": {"_tile_shape": lambda device: tile, "BLOCK": w},
        "counts": {"AT_ONCE": h * w},
        "bootstrap": {"AT_ONCE": h * w},
        "embeddings": {"CHUNK": h},
        "scores.embedding": {"BLOCK": h, "MANY": h * w},
        "scores.product": {"STRIP": w},
        "normalise.statistics": {"CPU_TILE": tile, "GPU_TILE": tile, "CHUNK": h, "STRIP": w},
        "normalise.sinkhorn": {"CPU_BLOCK": h * w, "GPU_BLOCK": h * w, "WIDTH": w},
        "normalise.ranked": {"TOGETHER": h},
        "match.tiles": match,
        "match.check": match | {"AT_ONCE": h},
        "match.candidates": match | {"CHUNK": 8 * h, "BLOCK": w},  # a multiple of height and width of a tile
        "match.assignment": {"AT_ONCE": h * w},
        "search.exact": {"CHUNK": h, "FOLD": w},
        "search.filter": {"BLOCK": 2, "FOLD": w, "PAGE": h},  # a power of two
        "search.approximate": {"PAGE": h},
        "fuse.trials": {"PAIRS_AT_ONCE": h * w, "BLOCK": h * w, "TOGETHER": h},
        "rerank.k_reciprocal": {"BLOCK": h},
        "rerank.itm": {"MEMORY": h * w},
    }


SIZE = re.compile(r".*(TILE|BLOCK|CHUNK|PAGE|STRIP|WIDTH|AT_ONCE|TOGETHER|MEMORY|FOLD)|height|_tile_shape")


@contextmanager
def other_tiles(tile: tuple[int, int]) -> Iterator[None]:
    """Every one of these constants is small."""
    with pytest.MonkeyPatch.context() as patch:
        for module, constants in sizes(tile).items():
            for name, value in constants.items():
                patch.setattr(importlib.import_module(f"{engine.__name__}.{module}"), name, value)
        yield


def tells_items_apart(name: str, problem: Problem) -> bool:
    """Among copies of one query, each item's share of its column is the same: all tie but for rounding."""
    both = (len(np.unique(side, axis=0)) for side in problem.sides)
    return not NORMALISATIONS[name].transductive or min(both) > 1


# --- every normalisation, and what ranks it -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@same_cases
@given(sides)
def test_order_of_rows_changes_nothing(name, sides):
    problem = Problem(*sides)
    assume(tells_items_apart(name, problem))
    other, rows, columns = problem.shuffled()
    source, turned = problem.source(name), other.source(name)
    assert np.allclose(values(turned), values(source)[rows][:, columns], rtol=1e-5, atol=1e-6)
    for ties in ("pessimistic", "optimistic"):
        found = ranks_of(turned, other.truth, ties=ties)
        # relevant items that tie share out their places in the order of the gallery: compare each query's places
        expected = ranks_of(source, problem.truth, ties=ties)[rows]
        assert np.array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))
    mine_both, theirs_both = (
        judge_both(one.source(name), one.truth, backward=one.source(name, backward=True)) for one in (problem, other)
    )
    for mine, theirs in zip(mine_both, theirs_both, strict=True):
        for metric in metric_names():
            assert np.array_equal(np.sort(mine.values[metric]), np.sort(theirs.values[metric])), metric


@pytest.mark.parametrize("name", NAMES)
@same_cases
@given(sides)
def test_ranks_count_exact_scores(name, sides):
    problem = Problem(*sides)
    source, truth = problem.source(name), problem.truth.toarray()
    for ties in ("pessimistic", "optimistic"):
        found = ranks_of(source, problem.truth, ties=ties)
        expected = reference.relevant_ranks(values(source).tolist(), truth, pessimistic=ties == "pessimistic")
        assert [row[right].tolist() for row, right in zip(found, truth, strict=True)] == expected


@pytest.mark.parametrize("name", NAMES)
@same_cases
@given(sides, st.tuples(st.integers(1, 4), st.integers(1, 5)))
def test_tiles_change_no_rank(name, sides, tile):
    problem = Problem(*sides)
    assume(tells_items_apart(name, problem))
    whole = rank(problem.source(name), problem.truth, 3)
    split = rank(problem.source(name), problem.truth, 3, tile=tile)
    for field in ("relevant_ranks", "top_rows", "top_scores"):
        assert np.array_equal(getattr(whole, field), getattr(split, field)), field
    with other_tiles(tile):
        everywhere = rank(problem.source(name), problem.truth, 3)
    assert np.array_equal(whole.relevant_ranks, everywhere.relevant_ranks)
    assert np.array_equal(whole.top_rows, everywhere.top_rows)


def test_no_size_is_forgotten():
    named = {
        (found.name.removeprefix(f"{engine.__name__}."), key)
        for found in pkgutil.walk_packages(engine.__path__, f"{engine.__name__}.")
        for key, value in vars(importlib.import_module(found.name)).items()
        if SIZE.fullmatch(key) and (isinstance(value, int | tuple) or callable(value))
    }
    listed = {(module, name) for module, constants in sizes((1, 1)).items() for name in constants}
    missing = sorted(named - listed)
    assert not missing, f"add {missing} to `sizes`, so that results are compared with other ones"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tile", [(3, 2), (4, 5)])
def test_sizes_change_no_rank_of_more(name, tile):
    problem = Problem(5, 37, 45, copies=False)
    whole = rank(problem.source(name), problem.truth, 3)
    with other_tiles(tile):
        small = rank(problem.source(name), problem.truth, 3)
    assert np.array_equal(whole.relevant_ranks, small.relevant_ranks)
    assert np.array_equal(whole.top_rows, small.top_rows)


@pytest.mark.parametrize("name", NAMES)
@same_cases
@given(sides)
def test_copies_tie(name, sides):
    problem = Problem(*sides)
    source = problem.source(name)
    scores = values(source)
    _, which = np.unique(problem.gallery, axis=0, return_inverse=True)
    for group in range(which.max() + 1):
        same = scores[:, which.ravel() == group]
        assert (same == same[:, :1]).all()
    top = rank(source, None, source.shape[1]).top_rows
    for row, query in enumerate(problem.queries):
        first = np.flatnonzero((problem.queries == query).all(1))[0]
        assert np.array_equal(top[row], top[first])
        tied = scores[row][top[row]]
        assert (np.diff(tied) <= 0).all()
        assert (np.diff(top[row])[np.diff(tied) == 0] > 0).all()  # of equal scores the earlier item


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (6, 1), (4, 9)])
def test_all_equal_scores_are_all_ties(name, n, m):
    problem = Problem(0, n, m)
    problem.queries[:], problem.gallery[:] = problem.queries[0], problem.gallery[0]
    truth = np.zeros((n, m), bool)
    truth[:, : (m + 1) // 2] = True
    relevant = int(truth[0].sum())
    worst, best = (ranks_of(problem.source(name), truth, ties=ties) for ties in ("pessimistic", "optimistic"))
    assert np.array_equal(np.sort(worst[0][truth[0]]), np.arange(m - relevant, m) + 1)
    assert np.array_equal(np.sort(best[0][truth[0]]), np.arange(relevant) + 1)
    assert (worst == worst[0]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "m"), [(0, 4), (3, 0), (0, 0)])
def test_empty_sides(name, n, m):
    problem = Problem(0, n, m, copies=False)
    if m == 0 and name != "none":  # a statistic of nothing
        with pytest.raises(ValueError, match="gallery is empty"):
            problem.source(name)
        return
    forward, backward = rank_both(problem.source(name), problem.truth, 5)
    assert forward.top_rows.shape == (n, min(5, m))
    assert backward.top_rows.shape == (m, min(5, n))
    assert len(forward.relevant_ranks) == len(backward.relevant_ranks) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_is_no_number_is_named(name):
    problem = Problem(0, 5, 7, copies=False)
    source = MatrixScores(problem.queries @ problem.gallery.T)
    source.matrix[3, 4] = torch.nan  # what a broken source of somebody's own may give
    bank = EmbeddingScores(problem.bank, problem.gallery)
    with pytest.raises(ValueError, match=r"query row 3|gallery row 4"):
        rank(normalised(source, name, Setting(0.1, neighbours=2, iterations=2, bank=bank)), None, 3)


# --- sources, ranks and metrics -------------------------------------------------------------------------------------


@same_cases
@given(sides)
def test_ranks_equal_the_reference_where_scores_collide(sides):
    seed, n, m = sides
    rng = np.random.default_rng(seed)
    left, right = (rng.integers(-1, 2, size=(rows, 3)) / 2 for rows in (n, m))  # few values: most scores are shared
    truth = sparse.csr_array(rng.random((n, m)) < 0.4)
    for source in (EmbeddingScores(left, right), MatrixScores(left @ right.T)):
        for ties in ("pessimistic", "optimistic"):
            forward, backward = rank_both(source, truth, 4, ties=ties)
            assert np.array_equal(dense(forward), ranks_of(source, truth, ties=ties))
            assert np.array_equal(dense(backward), ranks_of(Transposed(source), truth.T, ties=ties))
        low, high = ranks_of(source, truth, ties="optimistic"), ranks_of(source, truth, ties="pessimistic")
        assert (low <= high).all()
        scores = left @ right.T
        alone = (scores[:, :, None] == scores[:, None, :]).sum(2) == 1
        assert np.array_equal(low[alone], high[alone])


@same_cases
@given(sides)
def test_metrics_keep_their_bounds(sides):
    problem = Problem(*sides)
    worst, best = (rank(problem.source(), problem.truth, 0, ties=ties) for ties in ("pessimistic", "optimistic"))
    judged = np.diff(problem.truth.indptr) > 0
    ks = (1, 2, 5, 10)
    for metric in metric_names(ks):
        low, high = per_query(metric, worst), per_query(metric, best)
        assert np.array_equal(np.isnan(low), ~judged)
        low, high = low[judged], high[judged]
        if metric.endswith("_rank"):
            assert (low >= high).all()
            assert ((high >= 1) & (low <= problem.source().shape[1])).all()
        else:
            assert (low <= high + 1e-12).all() or metric == "map_at_10_challenge"  # it may reward a miss
            assert ((low >= 0) & (high <= 1 + 1e-12)).all()
    recalls = np.stack([per_query(f"recall_at_{k}", worst)[judged] for k in ks])
    assert (np.diff(recalls, axis=0) >= 0).all()


def test_a_perfect_ranking_is_perfect():
    vectors = unit(np.random.default_rng(0).standard_normal((6, D)))
    for judged in judge_both(EmbeddingScores(vectors, vectors), sparse.eye_array(6, dtype=bool)):
        for metric in metric_names():
            assert np.allclose(judged.values[metric], 1.0), metric


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_no_numbers_are_named(bad, tmp_path):
    vectors = unit(np.random.default_rng(0).standard_normal((4, D)))
    broken = vectors.copy()
    broken[2, 1] = bad
    with pytest.raises(ValueError, match="row 2 of the queries"):
        EmbeddingScores(broken, vectors)
    with pytest.raises(ValueError, match="row 2 of the gallery"):
        EmbeddingScores(vectors, broken)
    with pytest.raises(ValueError, match="query row 2 and gallery row 1"):
        MatrixScores(broken)
    with pytest.raises(ValueError, match="'photo-2'"):
        embeddings("image", broken, "photo").save(tmp_path / "embeddings")
    with pytest.raises(ValueError, match="finite"):
        WeightedScores([EmbeddingScores(vectors, vectors)], [bad])


# --- matching -------------------------------------------------------------------------------------------------------


@same_cases
@given(sides)
def test_matching_is_worth_the_same_in_any_order(sides):
    problem = Problem(*sides)
    other, *_ = problem.shuffled()
    found, turned = assign(problem.source()), assign(other.source())
    size = min(problem.source().shape)
    for match in (found, turned):
        assert len(match.query_rows) == len(set(match.query_rows)) == len(set(match.gallery_rows)) == size
    assert worth(problem.source(), found) == pytest.approx(worth(other.source(), turned), rel=1e-9, abs=1e-9)
    back = assign(Transposed(problem.source()))
    assert worth(Transposed(problem.source()), back) == pytest.approx(worth(problem.source(), found), rel=1e-9)
    row = problem.rng.permutation(len(problem.queries))[:size]
    column = problem.rng.permutation(len(problem.gallery))[:size]
    assert values(problem.source())[row, column].sum() <= worth(problem.source(), found) + 1e-9


@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("n", "m"), [(30, 45), (45, 30), (1, 20)])
def test_tiles_change_no_match(n, m, copies, tile):
    problem = Problem(3, n, m, copies=copies)
    whole = assign(problem.source(), method="dense")
    with other_tiles(tile):
        split = assign(problem.source(), method="sparse")
    assert worth(problem.source(), split) == pytest.approx(worth(problem.source(), whole), rel=1e-12)
    assert copies or np.array_equal(split.gallery_rows, whole.gallery_rows)


def test_matching_of_little():
    assert len(assign(Problem(0, 0, 3, copies=False).source()).query_rows) == 0
    assert len(assign(Problem(0, 3, 0, copies=False).source()).query_rows) == 0
    one = Problem(1, 1, 8, copies=False)
    assert assign(one.source()).gallery_rows.tolist() == [int(values(one.source())[0].argmax())]
    equal = assign(MatrixScores(np.full((5, 5), 0.25)))
    assert sorted(equal.gallery_rows.tolist()) == list(range(5))
    broken = MatrixScores(np.zeros((3, 4)))
    broken.matrix[1, 2] = torch.nan
    with pytest.raises(ValueError, match="query row 1 and gallery row 2"):
        assign(broken)


def worth(source: ScoreSource, match) -> float:
    return float(values(source)[match.query_rows, match.gallery_rows].sum())


# --- second stages that ask no model --------------------------------------------------------------------------------


def embeddings(side: str, vectors: np.ndarray, name: str) -> Embeddings:
    ids = np.array([f"{name}-{row}" for row in range(len(vectors))], dtype=object)
    return Embeddings(ids, vectors, {"member": "tiny", "side": side, "fingerprints": {"weights": "w"}})


def asked(method: str, texts: np.ndarray, images: np.ndarray, rows: np.ndarray, direction: str) -> np.ndarray:
    """What decides, [N, K]."""
    member = Member("tiny", embeddings("text", texts, "text"), embeddings("image", images, "photo"))
    truth = sparse.csr_array((len(texts), len(images)), dtype=bool)
    part = Slice("val", "all", list(member.texts.ids), list(member.texts.ids), list(member.images.ids), truth)
    queries, gallery = (texts, images) if direction == "t2i" else (images, texts)
    first = np.take_along_axis(queries.astype(np.float64) @ gallery.astype(np.float64).T, rows, axis=1)
    config = RerankConfig(
        method=method,
        member="tiny",
        directions=[direction],
        top_k=5,
        anchors=3,
        neighbours=2,
        expansion=2,
        mirrored=False,
    )
    found = SECOND_STAGES[method].ask(Asked(part, {direction: Candidates(rows, first)}, member, config))[direction]
    assert found.score.shape == rows.shape
    assert np.isfinite(found.score).all()
    return np.asarray(found.score, dtype=np.float64)


STAGES = [(name, direction) for name in WITHOUT_MODEL for direction in SECOND_STAGES[name].directions]


@pytest.mark.parametrize(("method", "direction"), STAGES)
@same_cases
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
def test_second_stage_knows_no_order(method, direction, seed, n, m):
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng.standard_normal((n, D))), unit(rng.standard_normal((m, D)))

    def ask(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts, images = (queries, gallery) if direction == "t2i" else (gallery, queries)
        rows = rank(EmbeddingScores(queries, gallery), None, 5).top_rows
        return rows, asked(method, texts, images, rows, direction)

    rows, scores = ask(queries, gallery)
    new, back = rng.permutation(n), rng.permutation(m)
    turned_rows, turned = ask(queries[new], gallery[back])
    assert np.array_equal(back[turned_rows], rows[new])
    assert np.allclose(turned, scores[new], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "direction"), STAGES)
def test_second_stage_of_copies_and_of_nothing(method, direction):
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng.standard_normal((3, D))), unit(rng.standard_normal((6, D)))
    gallery[4] = gallery[1]
    rows = np.tile(np.arange(6), (3, 1))
    turn = (lambda a, b: (a, b)) if direction == "t2i" else (lambda a, b: (b, a))
    scores = asked(method, *turn(queries, gallery), rows, direction)
    assert np.allclose(scores[:, 4], scores[:, 1], rtol=1e-6, atol=1e-6)
    equal = asked(method, *turn(queries, np.repeat(gallery[:1], 6, axis=0)), rows, direction)
    assert (np.diff(equal, axis=1) <= 1e-6).all()  # nobody overtakes: lists of k copies are cut by their order
    nobody = asked(method, *turn(queries[:0], gallery), rows[:0], direction)
    assert nobody.shape == (0, 6)
    assert asked(method, *turn(queries, gallery), rows[:, :1], direction).shape == (3, 1)


# --- fusions --------------------------------------------------------------------------------------------------------


class Members:
    """Two members' scores of the same queries and gallery; copies are copies for both."""

    def __init__(self, first: Problem, second: Problem) -> None:
        self.both = {"one": first, "two": second}
        self.truth = first.truth

    @classmethod
    def drawn(cls, seed: int, n: int, m: int, *, copies: bool = True) -> Members:
        first, second = Problem(seed, n, m, copies=False), Problem(seed + 1, n, m, copies=False)
        if copies:
            rows, columns = (first.rng.integers(0, size, size) for size in (n, m))
            for one in (first, second):
                one.queries, one.gallery = one.queries[rows], one.gallery[columns]
        return cls(first, second)

    def shuffled(self) -> Members:
        first = self.both["one"]
        rows, columns = (first.rng.permutation(len(side)) for side in first.sides)
        return Members(*(one.taken(rows, columns) for one in self.both.values()))

    def sources(self) -> dict[str, ScoreSource]:
        return {name: one.source("zscore") for name, one in self.both.items()}


def fused(method: str, members: Members, candidates: int) -> ScoreSource:
    config = fusion_config(method, candidates)
    return FUSIONS[method].fuse(members.sources(), chosen(method, candidates), "t2i", config)


def fusion_config(method: str, candidates: int) -> FusionConfig:
    return FusionConfig(method=method, candidates=candidates, metric="map_at_3")


@cache
def chosen(method: str, candidates: int) -> dict[str, object]:
    dev = Members.drawn(7, 14, 20)
    parts = {"all": DevPart(dev.sources(), dev.truth)}
    return FUSIONS[method].choose(["one", "two"], lambda direction: parts, fusion_config(method, candidates))


# Lists that are cut may part copies, by the order of the gallery: there are copies only where nothing is cut.
@pytest.mark.parametrize(("candidates", "copies"), [(4, False), (20, True)])
@pytest.mark.parametrize("method", sorted(FUSIONS))
@same_cases
@given(sides, st.tuples(st.integers(1, 4), st.integers(1, 5)))
def test_fusion_keeps_order_ties_and_tiles(method, candidates, copies, sides, tile):
    members = Members.drawn(*sides, copies=copies)
    other = members.shuffled()
    source, turned = (fused(method, one, candidates) for one in (members, other))
    for ties in ("pessimistic", "optimistic"):
        found, expected = (
            np.sort(ranks_of(one, of.truth, ties=ties), axis=1) for one, of in ((turned, other), (source, members))
        )
        assert sorted(found.tolist()) == sorted(expected.tolist())
    scores, gallery = values(source), members.both["one"].gallery
    _, which = np.unique(gallery, axis=0, return_inverse=True)
    for group in range(which.max() + 1):
        same = scores[:, which.ravel() == group]
        assert (same == same[:, :1]).all()
    split, whole = (rank(source, members.truth, 3, tile=shape) for shape in (tile, None))
    for field in ("relevant_ranks", "top_rows", "top_scores"):
        assert np.array_equal(getattr(whole, field), getattr(split, field)), field


@pytest.mark.parametrize("method", sorted(FUSIONS))
def test_fusion_of_little(method):
    assert rank(fused(method, Members.drawn(0, 0, 5, copies=False), 4), None, 3).top_rows.shape == (0, 3)
    assert rank(fused(method, Members.drawn(0, 1, 1, copies=False), 4), None, 3).top_rows.tolist() == [[0]]
    equal = Members.drawn(0, 3, 6)
    for one in equal.both.values():
        one.gallery[:] = one.gallery[0]
    truth = np.zeros((3, 6), bool)
    truth[:, 2] = True
    assert ranks_of(fused(method, equal, 20), truth).max(axis=1).tolist() == [6, 6, 6]
    assert ranks_of(fused(method, equal, 20), truth, ties="optimistic").max(axis=1).tolist() == [1, 1, 1]


# --- searchers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", get_args(IndexConfig.model_fields["kind"].annotation))
@same_cases
@given(sides, st.tuples(st.integers(1, 4), st.integers(1, 5)))
def test_searchers_find_the_exact_best(kind, sides, tile):
    if kind != "exact":
        pytest.importorskip("faiss", reason="the extra `search`")
    problem = Problem(*sides, copies=kind == "exact")  # faiss orders equal scores as it likes
    queries, gallery = problem.sides
    settings = {"lists": 1, "probes": 1} if kind == "ivf" else {}
    index = build_index(embeddings("image", gallery, "photo"), IndexConfig(kind=kind, **settings))
    expected = rank(EmbeddingScores(queries, gallery), None, 4)
    found = index.search(queries, 4)
    assert np.array_equal(found.rows, expected.top_rows)
    assert np.allclose(found.scores, expected.top_scores, atol=1e-6)
    with other_tiles(tile):
        small = build_index(embeddings("image", gallery, "photo"), IndexConfig(kind=kind, **settings))
        assert np.array_equal(small.search(queries, 4).rows, expected.top_rows)
    assert np.array_equal(index.search(queries[::-1].copy(), 4).rows, found.rows[::-1])
    assert index.search(queries[:0], 4).rows.shape[0] == 0
    broken = queries.copy()
    broken[-1, 0] = np.nan
    with pytest.raises(ValueError, match=f"row {len(broken) - 1} of the queries"):
        index.search(broken, 4)
