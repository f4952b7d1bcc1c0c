"""What a score source promises: tiles on demand, never an N x M matrix, and an exact value for any single pair.

A tile is fast and slightly wrong: the order in which a matrix product sums depends on the tile's shape. So every tile
states a bound on its error, and every source can give the exact score of chosen pairs: products and sums in fp64, in an
order that depends on the two vectors alone. Whoever compares scores takes the tile where the bound leaves no doubt and
the exact score elsewhere; the result then depends neither on tile sizes nor on the machine, and identical vectors tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

FP32_ROUNDING = 2.0**-24  # relative error of one fp32 operation


class Tile(NamedTuple):
    """Scores of a block of queries against a block of the gallery.

    Attributes:
        scores: [B, G] fp32.
        noise: Broadcastable to [B, G]: no entry differs from the exact score, rounded to fp32, by more.
    """

    scores: Tensor
    noise: Tensor


class ScoreSource(Protocol):
    """Scores of N queries (rows) against a gallery of M items (columns); higher is better."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tiles are computed."""
        ...

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """Scores of a block, with a bound on their error; the caller may overwrite the scores.

        `coarse` allows a larger error where that is faster, such as products of bf16: enough to sort out what cannot
        matter. A source that knows no faster way answers as without it.
        """
        ...

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Exact scores [K] fp64 of the pairs (queries[i], gallery[i]); both [K] int64 on `device`."""
        ...


@runtime_checkable
class QuickPairs(Protocol):
    """A source that knows a faster way to the scores of chosen pairs than the exact one."""

    def quick_pairs(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, float] | None:
        """Scores [K] fp32 of the pairs, and a bound on their error as in `Tile`; none where it is no faster."""
        ...


def quick_pairs(source: ScoreSource, queries: Tensor, gallery: Tensor) -> tuple[Tensor, float] | None:
    """As in `QuickPairs`, for any source; none where it knows no faster way than `pairs`."""
    return source.quick_pairs(queries, gallery) if isinstance(source, QuickPairs) else None


@dataclass(frozen=True, eq=False)
class Transposed:
    """The other direction: the gallery asks, the queries are ranked."""

    source: ScoreSource

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the source."""
        return self.source.shape[1], self.source.shape[0]

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The source's tile, transposed."""
        return flipped(self.source.tile(gallery, queries, coarse=coarse))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores."""
        return self.source.pairs(gallery, queries)

    def quick_pairs(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, float] | None:
        """The source's, where it knows them."""
        return quick_pairs(self.source, gallery, queries)


def flipped(tile: Tile) -> Tile:
    """A copy of the tile seen from the gallery, laid out row by row."""
    return Tile(tile.scores.T.clone(memory_format=torch.contiguous_format), tile.noise.T)


def rounding(scores: Tensor) -> Tensor:
    """Error of one fp32 operation with a result as large as the largest of `scores` [B, G]; a scalar tensor."""
    if scores.numel() == 0:
        return torch.zeros((), device=scores.device)
    low, high = torch.aminmax(scores)
    return FP32_ROUNDING * torch.maximum(-low, high)
