"""The weighted sum of several members' scores, itself a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.linear import LinearForm, linear_sum
from xmodal_kedro.retrieval.scores.source import ScoreSource, Tile, rounding


@dataclass(frozen=True, eq=False)
class WeightedScores:
    """Sum over members of weight times score; members of weight 0 cost nothing.

    Where all members are embeddings with rows that are scaled at most, a tile is one product (see `linear`).

    The 1st-place mixture is `WeightedScores([normalised(s, "row_l2") for s in members], [0.25] * 4)`.
    """

    sources: Sequence[ScoreSource]
    weights: Sequence[float]
    _used: list[tuple[ScoreSource, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the members rank the same rows."""
        if len(self.sources) != len(self.weights):
            raise ValueError(f"{len(self.sources)} score sources, but {len(self.weights)} weights.")
        bad = [w for w in self.weights if not (np.isfinite(w) and w >= 0.0)]
        if bad or not any(self.weights):
            raise ValueError(f"weights must be finite, none negative and one positive, not {list(self.weights)}.")
        if len(shapes := {source.shape for source in self.sources}) > 1:
            raise ValueError(
                f"members have scores of different shapes {sorted(shapes)}: all of them must be embedded over the same "
                "queries and gallery, in the same order."
            )
        object.__setattr__(self, "_used", [(s, w) for s, w in zip(self.sources, self.weights, strict=True) if w > 0.0])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.sources[0].shape

    @property
    def device(self) -> torch.device:
        """The first member's; all must agree."""
        return self.sources[0].device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The weighted sum of the members' tiles; their errors add up."""
        if (form := self._linear) is not None:
            return form.tile(queries, gallery, coarse=coarse)
        total: Tensor | None = None
        noise = torch.zeros(1, 1, device=self.device)
        for source, weight in self._used:
            part = source.tile(queries, gallery, coarse=coarse)
            noise = noise + weight * part.noise + (len(self._used) + 3) * weight * rounding(part.scores)
            total = part.scores * weight if total is None else total.add_(part.scores, alpha=weight)
        assert total is not None
        return Tile(total, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The weighted sum of the members' exact scores, in the order of the members."""
        total = torch.zeros(len(queries), dtype=torch.float64, device=self.device)
        for source, weight in self._used:
            total += weight * source.pairs(queries, gallery)
        return total

    def linear(self) -> LinearForm | None:
        """The mixture as one linear form, where all members are."""
        return self._linear

    @cached_property
    def _linear(self) -> LinearForm | None:
        return linear_sum(self._used)
