"""A source whose listed items come first, by scores of their own; all others follow in the order of a mixture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.fuse.candidates import Candidates
from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile, WeightedScores, rounding


class Listed:
    """Listed pairs have scores above zero; the others have those of a mixture, moved so that none is above zero.

    An item that is on no member's list scores at most the weighted sum of the last scores of the lists: that much is
    taken from the mixture of each row. Without a mixture the others tie at zero.
    """

    def __init__(self, base: ScoreSource, found: Candidates, values: np.ndarray, weights: np.ndarray | None) -> None:
        """Take the candidates and their scores.

        Args:
            base: [N, M]: the mixture that the others follow, of the members that were asked for candidates; without
                weights it lends its shape alone.
            found: Of all queries.
            values: [E] fp64, above zero.
            weights: [S] of that mixture. None: the others tie at zero.

        Raises:
            ValueError: A value is not a finite number above zero.
        """
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise ValueError("scores of candidates must be finite and above zero.")
        self.base = base
        self._keys = torch.from_numpy(found.queries * base.shape[1] + found.items).to(base.device)  # [E] ascending
        self._values = torch.from_numpy(np.asarray(values, dtype=np.float64)).to(base.device)
        self._starts = found.starts
        self._edge: Tensor | None = None
        if weights is not None:
            edge = np.zeros(found.last.shape[1])
            for weight, last in zip(weights, found.last, strict=True):  # summed up as `WeightedScores.pairs` does
                edge += weight * last
            self._edge = torch.from_numpy(edge).to(base.device)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.base.shape

    @property
    def device(self) -> torch.device:
        """The mixture's."""
        return self.base.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The mixture's tile behind the listed items in it; its noise bounds theirs, which is none."""
        if self._edge is None:
            scores = torch.zeros(queries.stop - queries.start, gallery.stop - gallery.start, device=self.device)
            noise = scores.new_zeros(1, 1)
        else:
            scores, noise = self.base.tile(queries, gallery, coarse=coarse)
            edge = self._edge[queries, None].float()
            scores = scores.sub_(edge)
            noise = noise + FP32_ROUNDING * edge.abs() + 2 * rounding(scores)
        part = slice(int(self._starts[queries.start]), int(self._starts[queries.stop]))
        rows, columns = self._keys[part] // self.shape[1] - queries.start, self._keys[part] % self.shape[1]
        inside = (columns >= gallery.start) & (columns < gallery.stop)
        scores[rows[inside], columns[inside] - gallery.start] = self._values[part][inside].float()
        return Tile(scores, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The scores of listed items, and the mixture's of others, moved."""
        if self._edge is None:
            scores = torch.zeros(len(queries), dtype=torch.float64, device=self.device)
        else:
            scores = self.base.pairs(queries, gallery) - self._edge[queries]
        if len(self._keys) == 0:
            return scores
        keys = queries * self.shape[1] + gallery
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return torch.where(self._keys[place] == keys, self._values[place], scores)


def listed(
    sources: list[ScoreSource], weights: list[float], found: Candidates, values: np.ndarray, *, tail: bool = True
) -> ScoreSource:
    """Candidates first; behind them the members' mixture, or, without a tail, nothing that can be told apart."""
    if len(found.queries) == 0:
        return WeightedScores(sources, weights)
    return Listed(WeightedScores(sources, weights), found, values, np.array(weights) if tail else None)
