"""How many scores of a tile reach each threshold of their row: by the tile where sure, else by exact scores.

Two ways to the same counts: a pass per threshold, which is best for a few per row, and a binary search per score.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import Tile

FEW = 8  # thresholds per row; above it a binary search per score costs less than a pass per threshold

ExactScores = Callable[[Tensor, Tensor], Tensor]
"""Rows [K] and columns [K] of a tile to their exact scores [K] fp64."""


def count_reaching(tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool) -> Tensor:
    """Count the scores of each row that reach each of the row's thresholds.

    Args:
        tile: [B, G]; an entry of minus infinity is never counted.
        thresholds: [B, R] fp64, ascending along R, filled up with plus infinity.
        exact: Exact scores of entries that the tile's noise leaves in doubt.
        ties: Whether a score that equals the threshold reaches it.

    Returns:
        [B, R] int64.
    """
    by = count_by_passes if thresholds.shape[1] <= FEW else count_by_search
    return by(tile, thresholds, exact, ties=ties)


def count_by_passes(tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool) -> Tensor:
    """`count_reaching` with two passes over the tile per threshold."""
    counts = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
    for slot in range(thresholds.shape[1]):
        threshold = thresholds[:, slot : slot + 1].float()  # [B, 1]
        above, below = threshold + tile.noise, threshold - tile.noise  # [B, 1] or [B, G]
        counts[:, slot] = (tile.scores > above).sum(1, dtype=torch.int32)
        unsure = ((tile.scores >= below).sum(1, dtype=torch.int32) != counts[:, slot]).nonzero()[:, 0]
        if len(unsure) == 0:
            continue
        scores = tile.scores[unsure]
        near = (scores >= _rows(below, unsure)) & (scores <= _rows(above, unsure))
        position, column = near.nonzero(as_tuple=True)
        row = unsure[position]
        value = exact(row, column)
        reaches = value >= thresholds[row, slot] if ties else value > thresholds[row, slot]
        counts[:, slot].index_add_(0, row, reaches.long())
    return counts


def count_by_search(tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool) -> Tensor:
    """`count_reaching` by placing every score among its row's thresholds."""
    rows, slots = thresholds.shape
    bounds = torch.cat([thresholds.float(), thresholds.new_full((rows, 1), torch.inf).float()], 1)  # [B, R + 1]
    # [B, G]: how many thresholds each score passes for sure
    place = torch.searchsorted(bounds[:, :-1].contiguous(), tile.scores - tile.noise)
    unsure = bounds.gather(1, place) <= tile.scores + tile.noise  # the next threshold may be passed as well
    row, column = unsure.nonzero(as_tuple=True)
    if len(row):
        place[row, column] = _search(thresholds, row, exact(row, column), right=ties)
    place += torch.arange(rows, device=place.device)[:, None] * (slots + 1)
    histogram = torch.bincount(place.flatten(), minlength=rows * (slots + 1)).view(rows, slots + 1)
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]


def _search(thresholds: Tensor, row: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many of the thresholds [B, R] of row[i] lie below values[i] (`right`: or are equal); [K]."""
    slots = thresholds.shape[1]
    low, high = torch.zeros_like(row), torch.full_like(row, slots)
    while bool((low < high).any()):
        middle = (low + high) // 2
        bound = thresholds[row, middle.clamp(max=slots - 1)]
        passed = ((bound <= values) if right else (bound < values)) & (low < high)
        low, high = torch.where(passed, middle + 1, low), torch.where(passed, high, middle)
    return low


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values if len(values) == 1 else values[rows]
