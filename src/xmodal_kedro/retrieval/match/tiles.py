"""The tiles that matching walks over: forbidden pairs hidden, what is not finite refused, parts of a source cut out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile
from xmodal_kedro.retrieval.tiles import slices

HIDDEN = -1e38  # stands for the score of a forbidden pair; finite, so that its bits can be changed
WIDTH = 2048
EXACT_IS_CHEAPER = 64  # by so much does an exact score cost more than an entry of a tile


class NotFiniteError(ValueError):
    """A score is NaN or infinite; its row and column are those of the problem that is being solved."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__(f"the score of row {row} and column {column} is not a finite number.")
        self.row, self.column = row, column


def height(device: torch.device) -> int:
    """Rows of a tile that fits the CPU's cache, or that fills a GPU; never above WIDTH."""
    return 512 if device.type == "cpu" else WIDTH


class Forbidden:
    """Pairs that may not be matched."""

    def __init__(self, pairs: sparse.csr_array | None, device: torch.device) -> None:
        """Take them [N, M]; None forbids nothing."""
        self.pairs = pairs
        if pairs is not None:
            self.starts = pairs.indptr.astype(np.int64)
            self.rows = torch.from_numpy(np.arange(pairs.shape[0]).repeat(np.diff(self.starts))).to(device)
            self.columns = torch.from_numpy(pairs.indices.astype(np.int64)).to(device)

    def hide(self, scores: Tensor, queries: slice, gallery: slice) -> None:
        """Overwrite the forbidden pairs of a block [B, G]."""
        if self.pairs is not None:
            part = slice(int(self.starts[queries.start]), int(self.starts[queries.stop]))
            rows, columns = self.rows[part] - queries.start, self.columns[part] - gallery.start
            inside = (columns >= 0) & (columns < scores.shape[1])
            scores[rows[inside], columns[inside]] = HIDDEN

    def left_of(self, keys: Tensor) -> Tensor:
        """Those of the pairs [K] (row * M + column) that are not forbidden."""
        if self.pairs is None:
            return keys
        return keys[~torch.isin(keys, self.rows * self.pairs.shape[1] + self.columns)]


def checked_range(scores: Tensor, queries: slice, gallery: slice) -> tuple[float, float]:
    """Lowest and highest score of a block; NotFiniteError if one is not finite."""
    low, high = (float(bound) for bound in torch.aminmax(scores))
    if not np.isfinite(low + high):
        row, column = (int(i) for i in (~torch.isfinite(scores)).nonzero()[0])
        raise NotFiniteError(queries.start + row, gallery.start + column)
    return low, high


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows and columns of a source, as a source: a group on its own.

    Attributes:
        source: [N, M].
        rows: [n] int64, ascending.
        columns: [m] int64, ascending.
    """

    source: ScoreSource
    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return len(self.rows), len(self.columns)

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """What the part has of the source's tiles; where it has little of them, exact scores instead."""
        rows, columns = self.rows[queries], self.columns[gallery]
        if len(rows) == 0 or len(columns) == 0:
            return Tile(torch.empty(len(rows), len(columns), device=self.device), torch.zeros(1, 1, device=self.device))
        top, left = int(rows[0]), int(columns[0])
        tall, wide = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        if (tall, wide) == (len(rows), len(columns)):
            return self.source.tile(slice(top, top + tall), slice(left, left + wide), coarse=coarse)
        if tall * wide > EXACT_IS_CHEAPER * len(rows) * len(columns):
            pairs = torch.cartesian_prod(rows, columns)
            scores = self.source.pairs(pairs[:, 0], pairs[:, 1]).float().view(len(rows), len(columns))
            return Tile(scores, FP32_ROUNDING * scores.abs().amax().view(1, 1))
        scores = torch.empty(len(rows), len(columns), device=self.device)
        noise = torch.zeros(1, 1, device=self.device)
        for above in slices(top + tall, height(self.device), top):
            own = slice(*torch.searchsorted(rows, torch.tensor([above.start, above.stop], device=self.device)).tolist())
            for beside in slices(left + wide, WIDTH, left):
                ends = torch.tensor([beside.start, beside.stop], device=self.device)
                mine = slice(*torch.searchsorted(columns, ends).tolist())
                if own.start < own.stop and mine.start < mine.stop:
                    found = self.source.tile(above, beside, coarse=coarse)
                    scores[own, mine] = found.scores[rows[own] - above.start][:, columns[mine] - beside.start]
                    noise = torch.maximum(noise, found.noise.amax().view(1, 1))
        return Tile(scores, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores."""
        return self.source.pairs(self.rows[queries], self.columns[gallery])
