"""Ranks of the relevant items and the best k of every query, exact, in one pass over tiles, for one direction or both.

The rank of a relevant item is its place among the relevant items of its query, plus the number of other items that
score higher - or as high, unless ties are asked to be optimistic. Scores are compared exactly (see `scores`): neither
the tile size nor the order of rows changes a rank. Memory is O(N + M) plus the relevance and one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from threading import Lock
from typing import get_args

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm import tqdm

from xmodal_kedro.retrieval.one_way import OneWay
from xmodal_kedro.retrieval.scores import ScoreSource, Tile, Transposed
from xmodal_kedro.retrieval.tiles import bounded, finite, slices, tile_shape
from xmodal_kedro.retrieval.truth import Ties, truth_of
from xmodal_kedro.retrieval.workers import side_by_side

DOUBT = 128  # a fine tile costs as much as the exact scores of this part of its entries
APART = 4  # places in the gallery at which blocks of queries start
LONGEST_PAUSE = 64  # tiles after which coarse ones are tried again, however often they failed


@dataclass(frozen=True, eq=False)
class Ranking:
    """What one direction of a ranking found.

    Attributes:
        shape: (N, M), queries and gallery.
        top_rows: [N, k] int64, gallery rows, best first; equal scores in the order of the gallery.
        top_scores: [N, k] fp32.
        relevance: [N, M] CSR of what is right for each query, with sorted columns; none where the truth is unknown.
        relevant_ranks: [nnz] int64 from 1, aligned with `relevance.indices`: the rank of every relevant item.
        ties: How equal scores were counted in `relevant_ranks`.
    """

    shape: tuple[int, int]
    top_rows: np.ndarray
    top_scores: np.ndarray
    relevance: sparse.csr_array | None
    relevant_ranks: np.ndarray | None
    ties: Ties


def rank(
    scores: ScoreSource,
    relevance: sparse.sparray | sparse.spmatrix | None = None,
    k: int = 10,
    *,
    ties: Ties = "pessimistic",
    tile: tuple[int, int] | None = None,
) -> Ranking:
    """Rank the gallery for every query.

    Args:
        scores: [N, M].
        relevance: [N, M] sparse; nonzero where an item is right for a query. None ranks without truth.
        k: Length of the top table; it is cut to M.
        ties: `pessimistic` places a relevant item behind the others with the same score, `optimistic` before them.
        tile: Rows and columns of a block; by default what suits the device. It changes speed and memory only.

    Raises:
        ValueError: `k`, `ties` or `tile` is none of what is allowed; shapes disagree; a score is not finite (its query
            row and gallery row are named), or the bound on its error is not a number.
    """
    _check(k, ties, tile)
    forward = OneWay(scores, truth_of(scores, relevance), k, ties)
    _stream(scores, [forward], tile)
    return _ranking(forward)


def rank_both(
    scores: ScoreSource,
    relevance: sparse.sparray | sparse.spmatrix | None = None,
    k: int = 10,
    *,
    ties: Ties = "pessimistic",
    tile: tuple[int, int] | None = None,
) -> tuple[Ranking, Ranking]:
    """Rank the gallery for every query and the queries for every gallery item, computing each score once.

    Returns:
        The ranking of `scores`, and the ranking of its transpose. Arguments and errors as in `rank`.
    """
    _check(k, ties, tile)
    forward = OneWay(scores, truth_of(scores, relevance), k, ties)
    backward = OneWay(Transposed(scores), None if forward.truth is None else forward.truth.turned(), k, ties)
    _stream(scores, [forward, backward], tile)
    return _ranking(forward), _ranking(backward)


def ranking_table(query_ids: Sequence[str], gallery_ids: Sequence[str], ranking: Ranking) -> pd.DataFrame:
    """The top table with names: `query_id`, `rank` (from 1), `gallery_id`, `score` (fp32), query by query."""
    if (len(query_ids), len(gallery_ids)) != ranking.shape:
        raise ValueError(
            f"{len(query_ids)} query ids and {len(gallery_ids)} gallery ids for a ranking of "
            f"{ranking.shape[0]} queries over {ranking.shape[1]} items."
        )
    n, k = ranking.top_rows.shape
    return pd.DataFrame(
        {
            "query_id": np.repeat(np.asarray(query_ids, dtype=object), k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
            "gallery_id": np.asarray(gallery_ids, dtype=object)[ranking.top_rows.ravel()],
            "score": ranking.top_scores.ravel(),
        }
    ).astype({"query_id": "str", "gallery_id": "str"})


def _check(k: int, ties: Ties, tile: tuple[int, int] | None) -> None:
    """ValueError where an argument is none of what is allowed."""
    if not isinstance(k, Integral) or k < 0:
        raise ValueError(f"k is {k!r}; it must be a whole number, 0 or more.")
    if ties not in get_args(Ties):
        raise ValueError(f"ties is '{ties}'; it must be one of {', '.join(get_args(Ties))}.")
    sides = tile if isinstance(tile, Sequence) else (tile,)
    if tile is not None and not (len(sides) == 2 and all(isinstance(side, Integral) and side > 0 for side in sides)):
        raise ValueError(f"tile is {tile!r}; it must be two whole numbers, 1 or more: rows and columns. Or None.")


def _stream(scores: ScoreSource, directions: Sequence[OneWay], shape: tuple[int, int] | None) -> None:
    """Show all tiles to the directions, the first as they are and the second transposed.

    Blocks of queries go side by side. What a block of queries finds is its own; what a block of the gallery finds is
    behind a lock, and neighbouring blocks of queries start apart in the gallery, so that they seldom wait.
    """
    height, width = shape or tile_shape(scores.device)
    galleries = list(slices(scores.shape[1], width))
    locks = [Lock() for _ in galleries]
    pace = _Pace()

    def look_along(block: tuple[int, slice]) -> None:
        number, queries = block
        first = number % APART * len(galleries) // APART
        for place in (*range(first, len(galleries)), *range(first)):
            look = partial(_look, scores, directions, queries, galleries[place], locks[place])
            if not (pace.tries() and pace.told(look(coarse=True))):
                look(coarse=False)

    blocks = list(enumerate(slices(scores.shape[0], height)))
    done = side_by_side(look_along, blocks, scores.device)
    # a bar appears when it takes more than three seconds
    for _ in tqdm(done, desc="rank", total=len(blocks), unit="block", delay=3, leave=False, disable=None):
        pass


class _Pace:
    """When coarse tiles are tried: first of all, and after each failure twice as many fine ones later."""

    def __init__(self) -> None:
        self.pause, self.left = 1, 0

    def tries(self) -> bool:
        """Whether it is time for a coarse tile."""
        self.left -= 1
        return self.left < 0

    def told(self, served: bool) -> bool:
        """Take in whether a coarse tile was enough; what was given."""
        self.left, self.pause = (0, 1) if served else (self.pause, min(2 * self.pause, LONGEST_PAUSE))
        return served


def _look(
    scores: ScoreSource,
    directions: Sequence[OneWay],
    queries: slice,
    gallery: slice,
    lock: Lock,
    *,
    coarse: bool,
) -> bool:
    """Show a tile to the directions; false, and nothing has happened, where a coarse one leaves too much in doubt."""
    tile = bounded(finite(scores.tile(queries, gallery, coarse=coarse), queries, gallery), queries, gallery)
    with lock:
        return _take_in(tile, directions, queries, gallery, coarse=coarse)


def _take_in(tile: Tile, directions: Sequence[OneWay], queries: slice, gallery: slice, *, coarse: bool) -> bool:
    most = tile.scores.numel() // DOUBT if coarse else None
    views = [(tile, queries, gallery), (Tile(tile.scores.T, tile.noise.T), gallery, queries)][: len(directions)]
    best = [direction.best_with(*view, coarse=coarse) for direction, view in zip(directions, views, strict=True)]
    if any(found is None for found in best):
        return False
    if directions[0].truth is not None:
        directions[0].truth.leave_out(tile, queries, gallery)
    counts = []
    for direction, view in zip(directions, views, strict=True):
        counts.append(direction.count(*view, most=most))
        if counts[-1] is None:
            return False
    for direction, (_, rows, _), found, count in zip(directions, views, best, counts, strict=True):
        direction.keep(rows, found, count)
    return True


def _ranking(direction: OneWay) -> Ranking:
    """The result, once every tile has been seen."""
    rows, scores = direction.top()
    truth = direction.truth
    return Ranking(
        shape=direction.scores.shape,
        top_rows=rows.cpu().numpy(),
        top_scores=scores.float().cpu().numpy(),
        relevance=None if truth is None else truth.relevance,
        relevant_ranks=None if truth is None else truth.ranks().cpu().numpy(),
        ties=direction.ties,
    )
