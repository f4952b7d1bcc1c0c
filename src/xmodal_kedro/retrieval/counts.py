"""How many scores of a tile reach each threshold of their line: by the tile where sure, else by exact scores.

A line is a row of the tile, or a column: a transposed view is as good as a tile. Two ways lead to the same counts: two
passes over the tile per threshold, which is best for a few per line, and a binary search per score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import Tile

FEW = 8  # thresholds per line; above it a binary search per score costs less than passes per threshold
AT_ONCE = 1 << 17  # scores whose places among many thresholds are searched at once

ExactScores = Callable[[Tensor, Tensor], Tensor]
"""Lines [K] and places [K] in them to the exact scores [K] fp64 of these entries of a tile."""


def count_reaching(
    tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool, most: int | None = None
) -> Tensor | None:
    """Count the scores of each line that reach each of the line's thresholds.

    Args:
        tile: [B, G], B lines; an entry of minus infinity is never counted.
        thresholds: [B, R] fp64, ascending along R, filled up with plus infinity.
        exact: Exact scores of entries that the tile's noise leaves in doubt.
        ties: Whether a score that equals the threshold reaches it.
        most: Entries in doubt above which to give up, before any is asked for; never by default.

    Returns:
        [B, R] int64; none where too much is in doubt.
    """
    lengths = (thresholds < torch.inf).sum(1)
    few, many = ((lengths <= FEW).nonzero()[:, 0], (lengths > FEW).nonzero()[:, 0])
    parts = [(few, count_by_passes)] if len(few) else []
    if len(many):
        parts += [(lines, count_by_search) for lines in many.split(max(1, AT_ONCE // max(1, tile.scores.shape[1])))]
    counts = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
    for lines, count in parts:
        width = int(lengths[lines].max())
        part = tile if len(lines) == len(counts) else _lines(tile, lines)

        def of_lines(line: Tensor, place: Tensor, lines: Tensor = lines) -> Tensor:
            return exact(lines[line], place)

        found = count(part, thresholds[lines, :width], of_lines, ties=ties, most=most)
        if found is None:
            return None
        counts[lines, :width] = found
    return counts


def count_by_passes(
    tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool, most: int | None = None
) -> Tensor | None:
    """`count_reaching` with two passes over the tile per threshold."""
    sure = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
    possible = torch.zeros_like(sure)
    flags, ones = torch.empty_like(tile.scores), tile.scores.new_ones(tile.scores.shape[1])
    everyone = torch.arange(len(sure), device=sure.device)
    slots: list[tuple[Tensor, Tile, Tensor]] = []  # lines that are looked at, their scores and their thresholds
    for slot in range(thresholds.shape[1]):
        having = (thresholds[:, slot] < torch.inf).nonzero()[:, 0]
        lines = having if 2 * len(having) < len(sure) else everyone
        part = tile if lines is everyone else _lines(tile, lines)
        room = flags if lines is everyone else torch.empty_like(part.scores)
        threshold = thresholds[lines, slot, None].float()  # [b, 1]
        # comparing into numbers, and adding these up by a product, is several times as fast as with truth values
        sure[lines, slot] = (torch.gt(part.scores, threshold + part.noise, out=room) @ ones).long()
        possible[lines, slot] = (torch.ge(part.scores, threshold - part.noise, out=room) @ ones).long()
        slots.append((lines, part, threshold))
    doubts = possible - sure
    if most is not None and int(doubts.sum()) > most:
        return None
    for slot, (lines, part, threshold) in enumerate(slots):
        unsure = doubts[lines, slot].nonzero()[:, 0]
        if len(unsure) == 0:
            continue
        (scores, noise), bound = _lines(part, unsure), threshold[unsure]
        position, place = _between(scores, bound - noise, bound + noise)
        line = lines[unsure[position]]
        value = exact(line, place)
        reaches = value >= thresholds[line, slot] if ties else value > thresholds[line, slot]
        sure[:, slot].index_add_(0, line, reaches.long())
    return sure


def count_by_search(
    tile: Tile, thresholds: Tensor, exact: ExactScores, *, ties: bool, most: int | None = None
) -> Tensor | None:
    """`count_reaching` by placing every score among its line's thresholds."""
    lines, slots = thresholds.shape
    bounds = torch.cat([thresholds.float(), thresholds.new_full((lines, 1), torch.inf).float()], 1)  # [B, R + 1]
    scores = tile.scores.contiguous()
    # [B, G]: how many thresholds each score passes for sure
    place = torch.searchsorted(bounds[:, :-1].contiguous(), scores - tile.noise)
    unsure = bounds.gather(1, place) <= scores + tile.noise  # the next threshold may be passed as well
    line, column = unsure.nonzero(as_tuple=True)
    if most is not None and len(line) > most:
        return None
    if len(line):
        place[line, column] = _search(thresholds, line, exact(line, column), right=ties)
    place += torch.arange(lines, device=place.device)[:, None] * (slots + 1)
    histogram = torch.bincount(place.flatten(), minlength=lines * (slots + 1)).view(lines, slots + 1)
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]


def _search(thresholds: Tensor, line: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many of the thresholds [B, R] of line[i] lie below values[i] (`right`: or are equal); [K]."""
    slots = thresholds.shape[1]
    low, high = torch.zeros_like(line), torch.full_like(line, slots)
    while bool((low < high).any()):
        middle = (low + high) // 2
        bound = thresholds[line, middle.clamp(max=slots - 1)]
        passed = ((bound <= values) if right else (bound < values)) & (low < high)
        low, high = torch.where(passed, middle + 1, low), torch.where(passed, high, middle)
    return low


def _lines(tile: Tile, lines: Tensor) -> Tile:
    return Tile(tile.scores[lines], tile.noise if len(tile.noise) == 1 else tile.noise[lines])


def _between(scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores [B, G] from low to high, both broadcastable."""
    if scores.device.type != "cpu":
        near = ((scores >= low) & (scores <= high)).nonzero()
        return near[:, 0], near[:, 1]
    values = scores.numpy()  # numpy finds the few among many ten times as fast as torch
    found = np.flatnonzero((values >= low.numpy()) & (values <= high.numpy()))
    row, column = np.divmod(found, scores.shape[1])
    return torch.from_numpy(row), torch.from_numpy(column)
