"""The normalised rank: how much of the gallery scores lower, whatever the scale of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_kedro.retrieval.counts import count_reaching
from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.statistics import checked
from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile

TOGETHER = 64  # consecutive rows whose pairs are ranked at once


@normalisation("rank")
def ranked(source: ScoreSource, setting: Setting) -> ScoreSource:
    """0 for the worst item of a row, 1 for the best, evenly in between; items that tie share their mean."""
    return RankedRows(source)


class RankedRows:
    """Ranks within rows, from 0 to 1; 1/2 where a row has one item.

    A rank needs its whole row. The rows of the latest tile are kept sorted, so walking along them sorts each row once:
    memory is that tile's rows times M, and the scores are computed twice. Walking down a column sorts anew for every
    tile. Exact ranks of pairs cost a row of the source each, and exact scores of whatever is near them in it.
    """

    def __init__(self, source: ScoreSource) -> None:
        """Take the source [N, M]."""
        self.source = source
        self._latest: tuple[slice, Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The middle of the ranks that a score can have, and half of their range; `coarse` changes nothing."""
        scores, noise = self.source.tile(queries, gallery)
        ordered, theirs = self._in_order(queries)
        reach = noise + theirs  # scores that are further apart than this stand in the order of their tiles
        least = torch.searchsorted(ordered, scores - reach)
        most = torch.searchsorted(ordered, scores + reach, right=True) - 1
        steps = max(1, self.shape[1] - 1)
        value = (least + most).float().div_(2 * steps) if self.shape[1] > 1 else torch.full_like(scores, 0.5)
        return Tile(value, (most - least).float().clamp_(min=0.0).div_(2 * steps).add_(4 * FP32_ROUNDING))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Exact ranks: what the noise of a tile leaves in doubt in the pair's row is compared exactly."""
        found = torch.full((len(queries),), 0.5, dtype=torch.float64, device=self.device)
        if self.shape[1] == 1:
            return found
        exact = self.source.pairs(queries, gallery)
        order = (queries // TOGETHER).argsort(stable=True)
        sizes = (queries[order] // TOGETHER).unique_consecutive(return_counts=True)[1].tolist()
        for which in order.split(sizes):
            found[which] = self._ranks(queries[which], exact[which])
        return found

    def _ranks(self, queries: Tensor, scores: Tensor) -> Tensor:
        """Ranks [K] fp64 of exact scores [K] in the rows `queries` [K], which are near to each other."""
        top, m = int(queries.min()), self.shape[1]
        block = slice(top, int(queries.max()) + 1)
        order = scores.argsort(stable=True)
        order = order[queries[order].argsort(stable=True)]  # by row, then ascending
        rows, sizes = (queries[order] - top).unique_consecutive(return_counts=True)
        row = rows.repeat_interleave(sizes)
        slot = torch.arange(len(order), device=row.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        thresholds = scores.new_full((block.stop - top, int(sizes.max())), torch.inf)
        thresholds[row, slot] = scores[order]

        def exact(row: Tensor, column: Tensor) -> Tensor:
            return self.source.pairs(row + top, column)

        tile = self.source.tile(block, slice(0, m))
        above, reaching = (count_reaching(tile, thresholds, exact, ties=ties) for ties in (False, True))
        assert above is not None
        assert reaching is not None  # no limit was set to what may be in doubt
        higher, lower = above[row, slot].double(), m - reaching[row, slot].double()
        ranks = torch.empty_like(scores)
        ranks[order] = (
            (lower + (m - 1.0 - higher)) / 2.0 / (m - 1)
        )  # the middle of the places that those that tie share
        return ranks

    def _in_order(self, queries: slice) -> tuple[Tensor, Tensor]:
        """The rows' scores [B, M], ascending, and how far each of a row may be off, [B, 1] or [1, 1]."""
        if self._latest is None or self._latest[0] != queries:
            scores, noise = self.source.tile(queries, slice(0, self.shape[1]))
            size = scores.abs().amax(1, keepdim=True)  # exact scores were rounded to fp32
            checked(size[:, 0], 0, queries.start)
            noise = noise.amax(1, keepdim=True) + 8 * FP32_ROUNDING * size
            self._latest = queries, scores.sort(dim=1).values, noise
        return self._latest[1], self._latest[2]
