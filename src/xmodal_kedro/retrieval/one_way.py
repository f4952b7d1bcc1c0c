"""What one direction of a ranking keeps while tiles stream by, and its exact best k in the end.

Tiles come with bounds on their errors. A query keeps some more candidates than it is asked for, by the highest that
their scores may be; exact scores are computed in the end, of those that may be among the best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xmodal_kedro.retrieval.counts import between
from xmodal_kedro.retrieval.scores import ScoreSource, Tile
from xmodal_kedro.retrieval.tiles import slices, tile_shape
from xmodal_kedro.retrieval.top import best_of_tile, by_rows
from xmodal_kedro.retrieval.truth import Ties, Truth

SPARE = 38  # candidates kept beyond k, so that scores within the noise around place k seldom need a second look
FEW_PASS = 32  # entries of a tile that may be among the best are looked at one by one up to this part of it
CROWDED = 16  # a fine tile costs less than a second look at this part of its rows


class Best(NamedTuple):
    """Candidates [B, K] of each query, by descending upper bound; lower and upper bounds of their scores, fp32.

    Where a query has fewer, minus infinity fills up. `reached` [B, 1] is what the best k of a query score at least.
    """

    upper: Tensor
    lower: Tensor
    rows: Tensor
    reached: Tensor


class OneWay:
    """What one direction keeps while tiles stream by: counts per relevant item, and the best candidates per query."""

    def __init__(self, scores: ScoreSource, truth: Truth | None, k: int, ties: Ties) -> None:
        """Begin with nothing: scores [N, M], what is right in them if that is known, and how many are asked for."""
        n, m = scores.shape
        self.scores, self.truth, self.ties = scores, truth, ties
        self.k = min(k, m)
        kept = min(self.k + SPARE, m) if self.k else 0
        lowest = torch.full((n, kept), -torch.inf, device=scores.device)
        rows = torch.zeros((n, kept), dtype=torch.int64, device=scores.device)
        self.best = Best(lowest, lowest.clone(), rows, lowest.new_full((n, 1), -torch.inf))

    def best_with(self, tile: Tile, queries: slice, gallery: slice, *, coarse: bool) -> Best | None:
        """The best candidates of the queries with those of the tile; none where a coarse tile tells too few apart."""
        best = Best(*(part[queries] for part in self.best))
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
            found = Best(order.values, lower, rows, lower.topk(self.k, dim=1).values[:, -1:])
            best = Best(*(part.index_copy(0, lines, new) for part, new in zip(best, found, strict=True)))
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

    def keep(self, queries: slice, best: Best | None, counts: Tensor | None) -> None:
        """Take in what has been found of a tile."""
        assert best is not None
        assert counts is not None
        for part, new in zip(self.best, best, strict=True):
            part[queries] = new
        if self.truth is not None:
            self.truth.counts[self.truth.of(queries)] += counts

    def top(self) -> tuple[Tensor, Tensor]:
        """Order the candidates by exact scores; look again at queries where an item that was dropped may belong.

        Returns:
            Gallery rows [N, k] int64, best first, ties in the order of the gallery; their scores [N, k] fp64.
        """
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
        height, width = tile_shape(self.scores.device)
        for position, row in enumerate(queries.tolist()):
            for gallery in slices(self.scores.shape[1], height * width):
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


def _ordered(query: Tensor, rows: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates [K] (gallery rows, scores) grouped by query (ascending), best first, ties by gallery row."""
    order = rows.argsort(stable=True)
    order = order[exact[order].argsort(stable=True, descending=True)]
    order = order[query[order].argsort(stable=True)]
    return rows[order], exact[order]
