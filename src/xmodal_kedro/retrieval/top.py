"""The best entries of a tile, row by row: by way of the best blocks of columns, or those that are known to matter."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import Tile

BLOCK = 32  # columns whose maximum stands for them


def best_of_tile(tile: Tile, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower bounds and columns [B, k] of the k highest upper bounds of each row of a tile [B, G]."""
    scores, noise = tile
    uniform = noise.shape[1] == 1  # then scores and their upper bounds have the same order within a row
    values, columns = highest(scores if uniform else scores + noise, k)
    noise = noise.expand_as(scores).gather(1, columns)
    upper = values + noise if uniform else values
    return upper, upper - 2 * noise, columns


def by_rows(tile: Tile, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entries [K] of a tile, by rows.

    Returns:
        The rows [L] that have any; upper and lower bounds and columns [L, W] of their entries. Where a row has fewer,
        minus infinity fills up.
    """
    order = row.argsort(stable=True)
    row, column = row[order], column[order]
    lines, line, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[line]
    scores, noise = tile.scores[row, column], tile.noise.expand_as(tile.scores)[row, column]
    upper = scores.new_full((len(lines), int(counts.max()) if len(lines) else 0), -torch.inf)
    lower, columns = upper.clone(), torch.zeros_like(upper, dtype=torch.int64)
    upper[line, place], lower[line, place], columns[line, place] = scores + noise, scores - noise, column
    return lines, upper, lower, columns


def highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
