"""A source whose first candidates stand in the order of a second stage."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.source import ScoreSource, Tile


class Reordered:
    """A source whose first candidates of each row stand in the order of a second stage; all else keeps its score.

    The candidates of a row share out the scores that they have in the source, best first: whoever is first in the new
    order takes the highest of them. So the candidates stay before the tail if they were there, and scores stay on the
    scale of the source. Candidates whose new scores are equal keep the order of the source; those that are equal in
    both tie, on the lowest of the scores that they would take. Exact scores are raised by the last bits of fp64, never
    lowered: the last candidate's above a tail that ties with it, and others' where the source ties candidates that the
    second stage tells apart. So nobody drops behind the tail, and the new order is strict.
    """

    def __init__(self, source: ScoreSource, candidates: Tensor, second: Tensor) -> None:
        """Take the candidates; their scores in the source are computed here, once.

        Args:
            source: [N, M].
            candidates: [N, K] int64 columns, distinct within a row, in any order.
            second: [N, K] scores of the second stage, higher is better.

        Raises:
            ValueError: The shapes do not fit, a row names a column twice, or a score is not finite.
        """
        n, m = source.shape
        if candidates.shape != second.shape or len(candidates) != n:
            raise ValueError(
                f"candidates have shape {tuple(candidates.shape)}, their scores {tuple(second.shape)}: both must be "
                f"[{n}, K]."
            )
        if not bool(torch.isfinite(second).all()):
            row = int((~torch.isfinite(second)).nonzero()[0, 0])
            raise ValueError(f"a new score of query row {row} is not a finite number.")
        self.source = source
        candidates, order = candidates.to(source.device).sort(dim=1)
        second = second.to(source.device).gather(1, order)
        if bool((candidates[:, 1:] == candidates[:, :-1]).any()):
            raise ValueError("a row names the same candidate twice.")
        rows = torch.arange(n, device=source.device).repeat_interleave(candidates.shape[1])
        first = source.pairs(rows, candidates.flatten()).view_as(candidates)
        self._keys = rows * m + candidates.flatten()  # [N * K], ascending
        self._scores = _handed_out(first, second).flatten()  # [N * K] fp64
        self._k = candidates.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The source's tile with the exact scores of the candidates in it; its noise bounds theirs, which is none."""
        scores, noise = self.source.tile(queries, gallery, coarse=coarse)
        part = slice(queries.start * self._k, queries.stop * self._k)
        rows, columns = self._keys[part] // self.shape[1] - queries.start, self._keys[part] % self.shape[1]
        inside = (columns >= gallery.start) & (columns < gallery.stop)
        scores[rows[inside], columns[inside] - gallery.start] = self._scores[part][inside].float()
        return Tile(scores, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores, and those handed out to candidates."""
        scores = self.source.pairs(queries, gallery)
        if len(self._keys) == 0:
            return scores
        keys = queries * self.shape[1] + gallery
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return torch.where(self._keys[place] == keys, self._scores[place], scores)


def second_order(first: Tensor, second: Tensor) -> Tensor:
    """Order [N, K] of candidates by their scores of the second stage, then of the first, then as they stand."""
    order = first.argsort(dim=1, stable=True, descending=True)
    return order.gather(1, second.gather(1, order).argsort(dim=1, stable=True, descending=True))


def _handed_out(first: Tensor, second: Tensor) -> Tensor:
    """What each candidate [N, K] of `Reordered` gets of the row's scores `first`, fp64."""
    order = second_order(first, second)
    high = first.sort(dim=1, descending=True).values
    first, second = first.gather(1, order), second.gather(1, order)
    ceiling = first.new_tensor(torch.inf)
    if high.shape[1]:
        high[:, -1] = high[:, -1].nextafter(ceiling)  # before whatever ties with it outside of the candidates
    for place in range(first.shape[1] - 2, -1, -1):
        here, below = (slice(None), place), (slice(None), place + 1)
        tied = (first[here] == first[below]) & (second[here] == second[below])
        above = torch.maximum(high[here], high[below].nextafter(ceiling))
        high[here] = torch.where(tied, high[below], above)
    return torch.empty_like(high).scatter_(1, order, high)
