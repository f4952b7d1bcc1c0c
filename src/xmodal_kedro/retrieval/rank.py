"""Ranks of the relevant items and the best k of every query, exact, in one pass over tiles, for one direction or both.

The rank of a relevant item is its place among the relevant items of its query, plus the number of other items that
score higher - or as high, unless ties are asked to be optimistic. Scores are compared exactly (see `scores`): neither
the tile size nor the order of rows changes a rank. Memory is O(N + M) plus the relevance and one tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.counts import count_reaching
from xmodal_kedro.retrieval.scores import ScoreSource, Tile, Transposed, flipped

Ties = Literal["pessimistic", "optimistic"]
SPARE = 8  # candidates kept beyond k, so that scores within the noise around place k seldom need a second look
BLOCK = 32  # columns whose maximum stands for them in the search for the best of a tile


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
        ValueError: Shapes disagree, or a score is not finite (its query row and gallery row are named).
    """
    forward = _Direction(scores, _canonical(relevance, scores.shape), k, ties)
    for queries, gallery, found in _tiles(scores, tile):
        forward.see(found, queries, gallery)
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
    truth = _canonical(relevance, scores.shape)
    forward = _Direction(scores, truth, k, ties)
    backward = _Direction(
        Transposed(scores), None if truth is None else _canonical(truth.T, scores.shape[::-1]), k, ties
    )
    for queries, gallery, found in _tiles(scores, tile):
        turned = flipped(found)
        forward.see(found, queries, gallery)
        backward.see(turned, gallery, queries)
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


class _Direction:
    """What one direction keeps while tiles stream by: counts per relevant item, and the best candidates per query."""

    def __init__(self, scores: ScoreSource, relevance: sparse.csr_array | None, k: int, ties: Ties) -> None:
        if k < 0:
            raise ValueError(f"k must not be negative; it is {k}.")
        n, m = scores.shape
        self.scores, self.relevance, self.ties = scores, relevance, ties
        self.k = min(k, m)
        kept = min(self.k + SPARE, m) if self.k else 0
        self.best = torch.full((n, kept), -torch.inf, device=scores.device)  # upper bounds of the candidates' scores
        self.best_rows = torch.zeros((n, kept), dtype=torch.int64, device=scores.device)
        self.truth = None if relevance is None else _Truth(scores, relevance)

    def see(self, tile: Tile, queries: slice, gallery: slice) -> None:
        """Take in a tile; the entries of relevant items are overwritten."""
        if self.k:
            values, columns = _best(tile.scores + tile.noise, self.best.shape[1])
            values = torch.cat([self.best[queries], values], 1)
            rows = torch.cat([self.best_rows[queries], columns + gallery.start], 1)
            self.best[queries], order = values.topk(self.best.shape[1], dim=1)
            self.best_rows[queries] = rows.gather(1, order)
        if self.truth is not None:
            self.truth.see(tile, queries, gallery, ties=self.ties == "pessimistic")

    def ranking(self) -> Ranking:
        """The result, once every tile has been seen."""
        rows, scores = self._top()
        return Ranking(
            shape=self.scores.shape,
            top_rows=rows.cpu().numpy(),
            top_scores=scores.float().cpu().numpy(),
            relevance=self.relevance,
            relevant_ranks=None if self.truth is None else self.truth.ranks().cpu().numpy(),
            ties=self.ties,
        )

    def _top(self) -> tuple[Tensor, Tensor]:
        """Order the candidates by exact scores; look again at queries where an item that was dropped may belong."""
        n, kept = self.best_rows.shape
        query = torch.arange(n, device=self.best_rows.device).repeat_interleave(kept)
        exact = self.scores.pairs(query, self.best_rows.flatten())
        rows, values = (part.view(n, kept)[:, : self.k] for part in _ordered(query, self.best_rows.flatten(), exact))
        if 0 < kept < self.scores.shape[1]:
            doubtful = (values[:, -1].float() <= self.best[:, -1]).nonzero()[:, 0]
            for queries in doubtful.split(64) if len(doubtful) else ():
                rows[queries], values[queries] = self._top_again(queries, values[queries, -1].float())
        return rows, values

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

    def __init__(self, scores: ScoreSource, relevance: sparse.csr_array) -> None:
        device = scores.device
        self.scores = scores
        self.starts = relevance.indptr.astype(np.int64)
        self.columns = torch.from_numpy(relevance.indices.astype(np.int64)).to(device)
        sizes = torch.from_numpy(np.diff(self.starts)).to(device)
        self.rows = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        exact = scores.pairs(self.rows, self.columns)
        # ascending by score within each query; of equal scores the later gallery item comes first
        order = torch.arange(len(exact), device=device).flip(0)
        for key in (exact, self.rows):
            order = order[key[order].argsort(stable=True)]
        self.order, self.thresholds = order, exact[order]
        self.slots = torch.arange(len(order), device=device) - torch.from_numpy(self.starts[:-1]).to(device)[self.rows]
        self.ahead = sizes[self.rows] - self.slots  # place among the relevant items of the query, for `order`
        self.counts = torch.zeros(len(order), dtype=torch.int64, device=device)

    def see(self, tile: Tile, queries: slice, gallery: slice, *, ties: bool) -> None:
        """Count the tile's other items that reach the relevant ones; `ties`: that score as high, too."""
        part = slice(int(self.starts[queries.start]), int(self.starts[queries.stop]))
        rows, slots = self.rows[part] - queries.start, self.slots[part]
        if len(rows) == 0:
            return
        inside = (self.columns[part] >= gallery.start) & (self.columns[part] < gallery.stop)
        tile.scores[rows[inside], self.columns[part][inside] - gallery.start] = -torch.inf
        thresholds = self.thresholds.new_full((len(tile.scores), int(slots.max()) + 1), torch.inf)
        thresholds[rows, slots] = self.thresholds[part]

        def exact(row: Tensor, column: Tensor) -> Tensor:
            return self.scores.pairs(row + queries.start, column + gallery.start)

        self.counts[part] += count_reaching(tile, thresholds, exact, ties=ties)[rows, slots]

    def ranks(self) -> Tensor:
        """[nnz] int64, aligned with the relevance."""
        ranks = torch.empty_like(self.counts)
        ranks[self.order] = self.ahead + self.counts
        return ranks


def _canonical(relevance: sparse.sparray | sparse.spmatrix | None, shape: tuple[int, int]) -> sparse.csr_array | None:
    """The relevance as CSR with sorted, distinct, nonzero entries."""
    if relevance is None:
        return None
    if relevance.shape != shape:
        raise ValueError(f"relevance has shape {relevance.shape}, the scores have {shape}: rows are queries in both.")
    truth = sparse.csr_array(relevance, dtype=bool, copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    return truth


def _tile_shape(device: torch.device) -> tuple[int, int]:
    """A tile that fits the CPU's cache, or fills a GPU."""
    return (512, 2048) if device.type == "cpu" else (8192, 8192)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _tiles(scores: ScoreSource, shape: tuple[int, int] | None) -> Iterator[tuple[slice, slice, Tile]]:
    """All tiles, each checked and the caller's to overwrite; a bar appears when it takes more than three seconds."""
    height, width = shape or _tile_shape(scores.device)
    blocks = list(_slices(scores.shape[0], height))
    for queries in tqdm(blocks, desc="rank", unit="block", delay=3, leave=False, disable=None):
        for gallery in _slices(scores.shape[1], width):
            tile = scores.tile(queries, gallery)
            if not bool(torch.isfinite(tile.scores.sum())) and not bool((finite := torch.isfinite(tile.scores)).all()):
                row, column = (int(i) for i in (~finite).nonzero()[0])
                raise ValueError(
                    f"the score of query row {queries.start + row} and gallery row {gallery.start + column} is not a "
                    "finite number."
                )
            yield queries, gallery, tile


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row [B, G] and their columns (fewer, where G is), by way of the best blocks of columns."""
    width = scores.shape[1]
    if width <= 2 * k * BLOCK:
        return scores.topk(min(k, width), dim=1)
    whole = width // BLOCK * BLOCK
    # block b holds the columns b, b + whole/BLOCK, ...: maxima then run along memory
    blocks = scores[:, :whole].unflatten(1, (BLOCK, -1)).amax(1).topk(k, dim=1).indices  # [B, k]
    stride = whole // BLOCK
    columns = (blocks[:, :, None] + stride * torch.arange(BLOCK, device=scores.device)).flatten(1)
    tail = torch.arange(whole, width, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, tail], 1)
    values, order = scores.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, order)


def _ordered(query: Tensor, rows: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates [K] (gallery rows, scores) grouped by query (ascending), best first, ties by gallery row."""
    order = rows.argsort(stable=True)
    order = order[exact[order].argsort(stable=True, descending=True)]
    order = order[query[order].argsort(stable=True)]
    return rows[order], exact[order]
