"""What holds for every normalisation, rank and metric, whatever the input: order, ties, tiles, copies, nothing, NaN.

New normalisations are picked up by being registered; what comes after them is in `test_properties_of_stages`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse

import xmodal_kedro.retrieval as engine
from tests.reference import ranks as reference
from tests.retrieval.problems import (
    D,
    Problem,
    dense,
    embeddings,
    other_tiles,
    ranks_of,
    same_cases,
    sides,
    sizes,
    unit,
    values,
)
from xmodal_kedro.retrieval.metrics import judge_both, metric_names, per_query
from xmodal_kedro.retrieval.normalise import NORMALISATIONS, Setting, normalised
from xmodal_kedro.retrieval.rank import rank, rank_both
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Transposed, WeightedScores

torch.set_num_threads(1)

NAMES = sorted(NORMALISATIONS)
SIZE = re.compile(r".*(TILE|BLOCK|CHUNK|PAGE|STRIP|WIDTH|AT_ONCE|TOGETHER|MEMORY|FOLD)|height|tile_shape")


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
