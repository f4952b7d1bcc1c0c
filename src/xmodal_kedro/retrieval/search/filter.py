"""Coarse scores of a gallery, with bounds on their error: what a search streams to find out what it need not look at.

Of a gallery in bf16, minus its mean: that shifts all scores of a query by the same amount, and where vectors lie close
together, as those of most encoders do, it makes them short, and the error of their products small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import FP32_ROUNDING
from xmodal_kedro.retrieval.scores.precision import (
    BF16_ROUNDING,
    HUGE,
    INPUT_ROUNDING,
    TINY,
    length_bound,
    sums_in_fp32,
)
from xmodal_kedro.retrieval.search.index import check_finite

BLOCK = 32  # columns of a tile whose maximum stands for them
FOLD = 8  # blocks per tile come in multiples of this
PAGE = 8192  # gallery rows at once where the whole gallery is read


@dataclass(frozen=True, eq=False)
class Filter:
    """What coarse scores are computed from.

    Attributes:
        vectors: [N, D] bf16: the gallery minus its mean. Or fp32: the gallery itself.
        length: [N] fp32, at least the length of each of `vectors`.
        error: [N] fp32, at least the distance of each of `vectors` from what it stands for.
    """

    vectors: Tensor
    length: Tensor
    error: Tensor


class Coarse:
    """Coarse scores of some queries with bounds on their error, of one strip of the gallery at a time."""

    def __init__(self, queries: Tensor, filter: Filter) -> None:
        self.filter = filter
        self.queries = queries.to(filter.vectors.dtype)
        self.length = length_bound(queries)[:, None]
        self.error = length_bound(queries - self.queries.float())[:, None]
        half = filter.vectors.dtype == torch.bfloat16
        # of a score when it is written, with room for the rounding of the bounds themselves
        self.rounding = 1.02 * (BF16_ROUNDING if half else FP32_ROUNDING)
        # of the sums, four times the bound of an IEEE sum: tensor cores cut off where others round
        self.sums = 4 * (queries.shape[1] + 16) * FP32_ROUNDING
        if not half:
            backend = torch.backends.cuda if queries.device.type == "cuda" else torch.backends.mkldnn
            self.sums += INPUT_ROUNDING.get(backend.matmul.fp32_precision, 0.0)
        per_tile, tiles = (1 << 20, 8) if queries.device.type == "cpu" else (1 << 27, 2)
        self.tile = max(4096, per_tile // len(queries))
        self.width = self.tile * tiles
        self.scores = self.queries.new_empty(0)

    def see(self, rows: slice | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Score a strip: maxima [Q, blocks], and the noise [Q, 1] that comes on top of the rounding of each score.

        With q' and g' for what q and g are rounded to, q.g - q'.g' = (q - q').g' + q.(g - g'), and neither product
        exceeds that of its lengths (Cauchy and Schwarz). The roundings of the sum in fp32 come on top.

        Args:
            rows: The strip.
            k: How many rows are looked for: there are at least four times as many blocks, if there are as many rows.
        """
        vectors = self.filter.vectors[rows]
        block = BLOCK
        while block > 1 and len(vectors) < 4 * k * block:
            block //= 2
        tiles = -(-len(vectors) // self.tile)
        width = -(-len(vectors) // (tiles * block * FOLD)) * block * FOLD
        if self.scores.shape != (tiles, len(self.queries), block, width // block):
            self.scores = self.queries.new_empty((tiles, len(self.queries), block, width // block))
        maxima = self.scores.new_empty((len(self.queries), tiles, width // block))
        with sums_in_fp32(vectors.device):
            for number, tile in enumerate(vectors.split(width)):
                scores = self.scores[number].view(len(self.queries), width)
                if len(tile) == width:
                    torch.mm(self.queries, tile.T, out=scores)
                else:
                    scores[:, : len(tile)] = self.queries @ tile.T
                    scores[:, len(tile) :] = -torch.inf
                torch.amax(self.scores[number], 1, out=maxima[:, number])
        far, lost = self.filter.length[rows].max(), self.filter.error[rows].max()
        longest = self.length + self.error
        noise = self.error * far + longest * lost + self.sums * longest * far + 4 * vectors.shape[1] * TINY
        return maxima.flatten(1).float(), noise

    def open(self, query: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [C], columns and scores of all that is in some blocks of the strip, of one query each.

        Columns beyond the strip fill up its last tile.
        """
        _, _, depth, stride = self.scores.shape
        tile, place = blocks // stride, blocks % stride
        scores = self.scores[tile, query, :, place].float()  # [C, depth]
        columns = (tile * depth * stride + place)[:, None] + stride * torch.arange(depth, device=query.device)
        return query.repeat_interleave(depth), columns.flatten(), scores.flatten()

    def too_long(self) -> Tensor:
        """[Q]: whether scores of a query could leave the range of numbers."""
        return (self.length * self.filter.length.max() >= HUGE)[:, 0]


def halved(matrix: Tensor, ids: Sequence[str] | np.ndarray | None = None) -> Filter:
    """The gallery minus its mean in bf16; ValueError names a vector that is not finite."""
    n, d = matrix.shape
    total = torch.zeros(d, dtype=torch.float64, device=matrix.device)
    for page in matrix.split(PAGE):
        total += page.sum(0, dtype=torch.float64)
    mean = (total / max(1, n)).float()
    vectors = torch.empty((n, d), dtype=torch.bfloat16, device=matrix.device)
    length, error = matrix.new_empty(n), matrix.new_empty(n)
    for start in range(0, n, PAGE):
        part = slice(start, start + PAGE)
        check_finite(matrix[part], "gallery", start=start, ids=ids)
        moved = matrix[part] - mean
        vectors[part] = moved
        length[part] = length_bound(vectors[part].float())
        # the subtraction is itself rounded
        error[part] = length_bound(moved - vectors[part].float()) + 2 * FP32_ROUNDING * length_bound(moved)
    return Filter(vectors, length, error)


def whole(matrix: Tensor, ids: Sequence[str] | np.ndarray | None = None) -> Filter:
    """The gallery itself; ValueError names a vector that is not finite."""
    length = matrix.new_empty(len(matrix))
    for start in range(0, len(matrix), PAGE):
        check_finite(matrix[start : start + PAGE], "gallery", start=start, ids=ids)
        length[start : start + PAGE] = length_bound(matrix[start : start + PAGE])
    return Filter(matrix, length, torch.zeros_like(length))
