"""What holds for every matching, second stage, fusion and searcher, whatever the input: order, ties, tiles, nothing.

New second stages, fusions and searchers are picked up by being registered.
"""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from tests.retrieval.problems import D, Problem, embeddings, other_tiles, ranks_of, same_cases, sides, unit, values
from xmodal_kedro.config.ensemble import FusionConfig, RerankConfig
from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.fuse import FUSIONS, DevPart
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.rerank.stage import SECOND_STAGES, Asked, Candidates
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, ScoreSource, Transposed
from xmodal_kedro.retrieval.search import build_index
from xmodal_kedro.retrieval.slices import Slice

torch.set_num_threads(1)

WITHOUT_MODEL = sorted(name for name, stage in SECOND_STAGES.items() if not stage.head)


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
