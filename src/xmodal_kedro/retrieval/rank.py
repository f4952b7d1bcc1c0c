"""Ranks of the relevant items and the best k of every query, exact, in one pass over tiles, for one direction or both.

The rank of a relevant item is its place among the relevant items of its query, plus the number of other items that
score higher - or as high, unless ties are asked to be optimistic. Scores are compared exactly (see `scores`): neither
the tile size nor the order of rows changes a rank. Memory is O(N + M) plus the relevance and one tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from threading import Lock
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.counts import between, count_reaching
from xmodal_kedro.retrieval.scores import ScoreSource, Tile, Transposed, quick_pairs
from xmodal_kedro.retrieval.top import best_of_tile, by_rows
from xmodal_kedro.retrieval.workers import side_by_side

Ties = Literal["pessimistic", "optimistic"]
SPARE = 38  # candidates kept beyond k, so that scores within the noise around place k seldom need a second look
DOUBT = 128  # a fine tile costs as much as the exact scores of this part of its entries
FEW_PASS = 32  # entries of a tile that may be among the best are looked at one by one up to this part of it
CROWDED = 16  # a fine tile costs less than a second look at this part of its rows
APART = 4  # places in the gallery at which blocks of queries start
LONGEST_PAUSE = 64  # tiles after which coarse ones are tried again, however often they failed
BOUNDLESS = torch.finfo(torch.float32).max / 4  # an error that says nothing of a score, and can be added to one


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
    forward = _Direction(scores, _truth(scores, relevance), k, ties)
    _stream(scores, [forward], tile)
    return forward.ranking()


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
    forward = _Direction(scores, _truth(scores, relevance), k, ties)
    backward = _Direction(Transposed(scores), None if forward.truth is None else forward.truth.turned(), k, ties)
    _stream(scores, [forward, backward], tile)
    return forward.ranking(), backward.ranking()


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


def _stream(scores: ScoreSource, directions: Sequence[_Direction], shape: tuple[int, int] | None) -> None:
    """Show all tiles to the directions, the first as they are and the second transposed.

    Blocks of queries go side by side. What a block of queries finds is its own; what a block of the gallery finds is
    behind a lock, and neighbouring blocks of queries start apart in the gallery, so that they seldom wait.
    """
    height, width = shape or _tile_shape(scores.device)
    galleries = list(_slices(scores.shape[1], width))
    locks = [Lock() for _ in galleries]
    pace = _Pace()

    def look_along(block: tuple[int, slice]) -> None:
        number, queries = block
        first = number % APART * len(galleries) // APART
        for place in (*range(first, len(galleries)), *range(first)):
            look = partial(_look, scores, directions, queries, galleries[place], locks[place])
            if not (pace.tries() and pace.told(look(coarse=True))):
                look(coarse=False)

    blocks = list(enumerate(_slices(scores.shape[0], height)))
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
    directions: Sequence[_Direction],
    queries: slice,
    gallery: slice,
    lock: Lock,
    *,
    coarse: bool,
) -> bool:
    """Show a tile to the directions; false, and nothing has happened, where a coarse one leaves too much in doubt."""
    tile = _bounded(_finite(scores.tile(queries, gallery, coarse=coarse), queries, gallery), queries, gallery)
    with lock:
        return _take_in(tile, directions, queries, gallery, coarse=coarse)


def _take_in(tile: Tile, directions: Sequence[_Direction], queries: slice, gallery: slice, *, coarse: bool) -> bool:
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


class _Best(NamedTuple):
    """Candidates [B, K] of each query, by descending upper bound; lower and upper bounds of their scores, fp32.

    Where a query has fewer, minus infinity fills up. `reached` [B, 1] is what the best k of a query score at least.
    """

    upper: Tensor
    lower: Tensor
    rows: Tensor
    reached: Tensor


class _Direction:
    """What one direction keeps while tiles stream by: counts per relevant item, and the best candidates per query."""

    def __init__(self, scores: ScoreSource, truth: _Truth | None, k: int, ties: Ties) -> None:
        n, m = scores.shape
        self.scores, self.truth, self.ties = scores, truth, ties
        self.k = min(k, m)
        kept = min(self.k + SPARE, m) if self.k else 0
        lowest = torch.full((n, kept), -torch.inf, device=scores.device)
        rows = torch.zeros((n, kept), dtype=torch.int64, device=scores.device)
        self.best = _Best(lowest, lowest.clone(), rows, lowest.new_full((n, 1), -torch.inf))

    def best_with(self, tile: Tile, queries: slice, gallery: slice, *, coarse: bool) -> _Best | None:
        """The best candidates of the queries with those of the tile; none where a coarse tile tells too few apart."""
        best = _Best(*(part[queries] for part in self.best))
        if not self.k:
            return best
        kept = best.upper.shape[1]
        passing = between(tile.scores, best.reached - tile.noise, most=tile.scores.numel() // FEW_PASS)
        if passing is None:
            lines = torch.arange(len(best.upper), device=tile.scores.device)
            upper, lower, columns = best_of_tile(Tile(tile.scores.contiguous(), tile.noise), kept)
        else:  # most often, once the gallery has shown a few of its tiles
            lines, upper, lower, columns = by_rows(tile, *passing)
        if len(lines):
            upper = torch.cat([best.upper[lines], upper], 1)
            order = upper.topk(kept, dim=1)
            lower = torch.cat([best.lower[lines], lower], 1).gather(1, order.indices)
            rows = torch.cat([best.rows[lines], columns + gallery.start], 1).gather(1, order.indices)
            found = _Best(order.values, lower, rows, lower.topk(self.k, dim=1).values[:, -1:])
            best = _Best(*(part.index_copy(0, lines, new) for part, new in zip(best, found, strict=True)))
        if coarse and kept < self.scores.shape[1]:
            full = best.upper[:, -1:]
            if int(((best.reached <= full) & (full > -torch.inf)).sum()) * CROWDED > len(full):
                return None
        return best

    def count(self, tile: Tile, queries: slice, gallery: slice, *, most: int | None) -> Tensor | None:
        """How many other items of the tile reach each relevant item of the queries; none where too much is in doubt."""
        if self.truth is None:
            return torch.zeros(0)
        return self.truth.count(tile, queries, gallery, ties=self.ties == "pessimistic", most=most)

    def keep(self, queries: slice, best: _Best | None, counts: Tensor | None) -> None:
        """Take in what has been found of a tile."""
        assert best is not None
        assert counts is not None
        for part, new in zip(self.best, best, strict=True):
            part[queries] = new
        if self.truth is not None:
            self.truth.counts[self.truth.of(queries)] += counts

    def ranking(self) -> Ranking:
        """The result, once every tile has been seen."""
        rows, scores = self._top()
        return Ranking(
            shape=self.scores.shape,
            top_rows=rows.cpu().numpy(),
            top_scores=scores.float().cpu().numpy(),
            relevance=None if self.truth is None else self.truth.relevance,
            relevant_ranks=None if self.truth is None else self.truth.ranks().cpu().numpy(),
            ties=self.ties,
        )

    def _top(self) -> tuple[Tensor, Tensor]:
        """Order the candidates by exact scores; look again at queries where an item that was dropped may belong."""
        upper, lower, rows, reached = self.best
        if not self.k:
            return rows, lower.double()
        likely = upper >= reached  # the others are behind k candidates for sure
        query, place = likely.nonzero(as_tuple=True)
        items = rows[query, place]
        items, exact = _ordered(query, items, self.scores.pairs(query, items))
        ends = likely.sum(1).cumsum(0)
        places = (ends - likely.sum(1))[:, None] + torch.arange(self.k, device=ends.device)
        found, values = items[places], exact[places]
        if upper.shape[1] < self.scores.shape[1]:
            doubtful = (values[:, -1].float() <= upper[:, -1]).nonzero()[:, 0]
            for queries in doubtful.split(64) if len(doubtful) else ():
                found[queries], values[queries] = self._top_again(queries, values[queries, -1].float())
        return found, values

    def _top_again(self, queries: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
        """The top k [Q, k] of `queries` [Q], of which at least k items are known to score `reached` [Q] or more."""
        query, rows = [], []
        height, width = _tile_shape(self.scores.device)
        for position, row in enumerate(queries.tolist()):
            for gallery in _slices(self.scores.shape[1], height * width):
                scores, noise = self.scores.tile(slice(row, row + 1), gallery)
                found = (scores + noise >= reached[position])[0].nonzero()[:, 0]
                query.append(torch.full_like(found, row))
                rows.append(found + gallery.start)
        which, items = torch.cat(query), torch.cat(rows)
        exact = self.scores.pairs(which, items)
        items, exact = _ordered(which, items, exact)
        ends = torch.searchsorted(which, queries)  # both ascend
        places = ends[:, None] + torch.arange(self.k, device=ends.device)
        return items[places], exact[places]


class _Truth:
    """Exact scores of the relevant items, and how many of the other items reach each of them."""

    def __init__(self, scores: ScoreSource, relevance: sparse.csr_array, exact: Tensor | None = None) -> None:
        device = scores.device
        self.scores, self.relevance = scores, relevance
        self.starts = relevance.indptr.astype(np.int64)
        self.columns = torch.from_numpy(relevance.indices.astype(np.int64)).to(device)
        sizes = torch.from_numpy(np.diff(self.starts)).to(device)
        self.rows = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        exact = scores.pairs(self.rows, self.columns) if exact is None else exact
        # ascending by score within each query; of equal scores the later gallery item comes first
        order = torch.arange(len(exact), device=device).flip(0)
        for key in (exact, self.rows):
            order = order[key[order].argsort(stable=True)]
        self.order, self.thresholds = order, exact[order]
        self.slots = torch.arange(len(order), device=device) - torch.from_numpy(self.starts[:-1]).to(device)[self.rows]
        self.ahead = sizes[self.rows] - self.slots  # place among the relevant items of the query, for `order`
        self.counts = torch.zeros(len(order), dtype=torch.int64, device=device)

    def turned(self) -> _Truth:
        """The same seen from the gallery, with the same scores."""
        where = sparse.csr_array(
            (np.arange(len(self.order)), self.relevance.indices, self.relevance.indptr), shape=self.relevance.shape
        ).T.tocsr()
        exact = torch.empty_like(self.thresholds)
        exact[self.order] = self.thresholds
        relevance = sparse.csr_array((self.relevance.data[where.data], where.indices, where.indptr), shape=where.shape)
        return _Truth(Transposed(self.scores), relevance, exact[torch.from_numpy(where.data).to(exact.device)])

    def of(self, queries: slice) -> slice:
        """Where the relevant items of these queries stand."""
        return slice(int(self.starts[queries.start]), int(self.starts[queries.stop]))

    def leave_out(self, tile: Tile, queries: slice, gallery: slice) -> None:
        """Overwrite the tile's relevant items, so that none of them is counted."""
        part = self.of(queries)
        rows, columns = self.rows[part], self.columns[part]
        inside = (columns >= gallery.start) & (columns < gallery.stop)
        tile.scores[rows[inside] - queries.start, columns[inside] - gallery.start] = -torch.inf

    def count(self, tile: Tile, queries: slice, gallery: slice, *, ties: bool, most: int | None) -> Tensor | None:
        """Count the tile's items that reach the relevant ones of its queries; `ties`: those that score as high, too."""
        part = self.of(queries)
        rows, slots = self.rows[part] - queries.start, self.slots[part]
        if len(rows) == 0:
            return self.counts[part].clone()
        thresholds = self.thresholds.new_full((len(tile.scores), int(slots.max()) + 1), torch.inf)
        thresholds[rows, slots] = self.thresholds[part]

        def exact(row: Tensor, column: Tensor) -> Tensor:
            return self.scores.pairs(row + queries.start, column + gallery.start)

        def quick(row: Tensor, column: Tensor) -> tuple[Tensor, float] | None:
            return quick_pairs(self.scores, row + queries.start, column + gallery.start)

        counts = count_reaching(tile, thresholds, exact, ties=ties, most=most, quick=quick)
        return None if counts is None else counts[rows, slots]

    def ranks(self) -> Tensor:
        """[nnz] int64, aligned with the relevance."""
        ranks = torch.empty_like(self.counts)
        ranks[self.order] = self.ahead + self.counts
        return ranks


def _truth(scores: ScoreSource, relevance: sparse.sparray | sparse.spmatrix | None) -> _Truth | None:
    return None if relevance is None else _Truth(scores, _canonical(relevance, scores.shape))


def _canonical(relevance: sparse.sparray | sparse.spmatrix, shape: tuple[int, int]) -> sparse.csr_array:
    """The relevance as CSR with sorted, distinct, nonzero entries."""
    if relevance.shape != shape:
        raise ValueError(f"relevance has shape {relevance.shape}, the scores have {shape}: rows are queries in both.")
    truth = sparse.csr_array(relevance, dtype=bool, copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    return truth


def _tile_shape(device: torch.device) -> tuple[int, int]:
    """A tile that fits the CPU's cache, or fills a GPU."""
    return (512, 1536) if device.type == "cpu" else (8192, 8192)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _finite(tile: Tile, queries: slice, gallery: slice) -> Tile:
    """The tile, if its scores are finite."""
    if not bool(torch.isfinite(tile.scores.sum())) and not bool((finite := torch.isfinite(tile.scores)).all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"the score of query row {queries.start + row} and gallery row {gallery.start + column} is not a "
            "finite number."
        )
    return tile


def _bounded(tile: Tile, queries: slice, gallery: slice) -> Tile:
    """The tile, with a finite number in the place of infinite bounds on its error: exact scores decide there."""
    if bool(tile.noise.amax() < BOUNDLESS):
        return tile
    if bool(tile.noise.isnan().any()):
        raise ValueError(
            f"the error of the scores of query rows {queries.start} to {queries.stop - 1} and gallery rows "
            f"{gallery.start} to {gallery.stop - 1} is bounded by NaN: a score source must give a number, or infinity."
        )
    return Tile(tile.scores, tile.noise.clamp(max=BOUNDLESS))


def _ordered(query: Tensor, rows: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates [K] (gallery rows, scores) grouped by query (ascending), best first, ties by gallery row."""
    order = rows.argsort(stable=True)
    order = order[exact[order].argsort(stable=True, descending=True)]
    order = order[query[order].argsort(stable=True)]
    return rows[order], exact[order]
