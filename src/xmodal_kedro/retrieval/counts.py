"""How many scores of a tile reach each threshold of their line: by the tile where sure, else by exact scores.

A line is a row of the tile, or a column: a transposed view is as good as a tile. Most often few scores reach even the
lowest threshold of their line, and each of these is placed among the thresholds by a binary search. Where many do, the
same is done a few lines at a time; lines with few thresholds are counted by two passes per threshold, which costs less.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import Tile

FEW = 8  # thresholds per line; above it a binary search per score costs less than passes per threshold
SPARSE = 16  # searches for this part of a tile's scores cost as much as passes over all
AT_ONCE = 1 << 17  # scores of the lines that are searched at once

QuickScores = Callable[[Tensor, Tensor], tuple[Tensor, float] | None]
"""Lines [K] and places [K] to scores [K] fp32 that are closer than the tile's, and how far they are off at most."""

ExactScores = Callable[[Tensor, Tensor], Tensor]
"""Lines [K] and places [K] in them to the exact scores [K] fp64 of these entries of a tile."""


def count_reaching(
    tile: Tile,
    thresholds: Tensor,
    exact: ExactScores,
    *,
    ties: bool,
    most: int | None = None,
    quick: QuickScores | None = None,
) -> Tensor | None:
    """Count the scores of each line that reach each of the line's thresholds.

    Args:
        tile: [B, G], B lines; an entry of minus infinity is never counted.
        thresholds: [B, R] fp64, ascending along R, filled up with plus infinity.
        exact: Exact scores of entries that the tile's noise leaves in doubt.
        ties: Whether a score that equals the threshold reaches it.
        most: Entries in doubt above which to give up, before their exact scores are asked for; never by default.
        quick: Scores between the tile's and the exact ones, which leave less in doubt; none, or none found, goes
            without.

    Returns:
        [B, R] int64; none where too much is in doubt.
    """
    if thresholds.numel() == 0:
        return torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
    lowest = thresholds[:, :1].float() - tile.noise
    entries = between(tile.scores, lowest, most=tile.scores.numel() // SPARSE)
    if entries is not None:
        return count_by_search(tile, thresholds, exact, ties=ties, most=most, quick=quick, entries=entries)
    lengths = (thresholds < torch.inf).sum(1)
    few, many = ((lengths <= FEW).nonzero()[:, 0], (lengths > FEW).nonzero()[:, 0])
    parts: list[tuple[Tensor, Callable[..., Tensor | None]]] = [(few, count_by_passes)]
    parts += [(lines, count_by_search) for lines in many.split(max(1, AT_ONCE // tile.scores.shape[1]))]
    counts = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
    for lines, count in parts:
        if len(lines) == 0:
            continue
        width = int(lengths[lines].max())
        part = tile if len(lines) == len(counts) else _lines(tile, lines)

        def of_lines(line: Tensor, place: Tensor, lines: Tensor = lines) -> Tensor:
            return exact(lines[line], place)

        def quick_of_lines(line: Tensor, place: Tensor, lines: Tensor = lines) -> tuple[Tensor, float] | None:
            return None if quick is None else quick(lines[line], place)

        found = count(part, thresholds[lines, :width], of_lines, ties=ties, most=most, quick=quick_of_lines)
        if found is None:
            return None
        counts[lines, :width] = found
    return counts


def count_by_passes(
    tile: Tile,
    thresholds: Tensor,
    exact: ExactScores,
    *,
    ties: bool,
    most: int | None = None,
    quick: QuickScores | None = None,
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
        near = between(scores, bound - noise, bound + noise)
        assert near is not None
        position, place = near
        line = lines[unsure[position]]
        bounds = thresholds[line, slot]
        known = None if quick is None else quick(line, place)
        if known is not None:
            values, error = known
            sure[:, slot].index_add_(0, line, (values > bounds.float() + error).long())
            left = ((values - bounds.float()).abs() <= error).nonzero()[:, 0]
            line, place, bounds = line[left], place[left], bounds[left]
        value = exact(line, place)
        reaches = value >= bounds if ties else value > bounds
        sure[:, slot].index_add_(0, line, reaches.long())
    return sure


def count_by_search(
    tile: Tile,
    thresholds: Tensor,
    exact: ExactScores,
    *,
    ties: bool,
    most: int | None = None,
    quick: QuickScores | None = None,
    entries: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """`count_reaching` by placing scores among their line's thresholds.

    Args:
        tile: As there, like what follows.
        thresholds: With R of at least 1.
        exact: As there.
        ties: As there.
        most: As there.
        quick: As there.
        entries: Lines [K] and places [K] of all scores that may reach a threshold; found here by default.
    """
    lines, slots = thresholds.shape
    bounds = thresholds.float()
    if entries is None:
        entries = between(tile.scores, bounds[:, :1] - tile.noise)
        assert entries is not None
    line, place = entries
    known = None if quick is None else quick(line, place)
    noise: Tensor | float
    if known is None:
        scores, noise = tile.scores[line, place], tile.noise.expand_as(tile.scores)[line, place]
    else:
        scores, noise = known
    passed = _search(bounds, line, scores - noise, right=False)  # [K]: how many thresholds each passes for sure
    unsure = (_search(bounds, line, scores + noise, right=True) != passed).nonzero()[:, 0]
    if most is not None and len(unsure) > most:
        return None
    if len(unsure):
        passed[unsure] = _search(thresholds, line[unsure], exact(line[unsure], place[unsure]), right=ties)
    histogram = torch.bincount(line * (slots + 1) + passed, minlength=lines * (slots + 1)).view(lines, slots + 1)
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]


def _search(thresholds: Tensor, line: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many of the thresholds [B, R] of line[i] lie below values[i] (`right`: or are equal); [K]."""
    slots = thresholds.shape[1]
    if slots <= FEW:
        bounds = thresholds.T.contiguous().index_select(1, line)  # [R, K]
        return (bounds <= values if right else bounds < values).sum(0)
    low, high = torch.zeros_like(line), torch.full_like(line, slots)
    while bool((low < high).any()):
        middle = (low + high) // 2
        bound = thresholds[line, middle.clamp(max=slots - 1)]
        passed = ((bound <= values) if right else (bound < values)) & (low < high)
        low, high = torch.where(passed, middle + 1, low), torch.where(passed, high, middle)
    return low


def _lines(tile: Tile, lines: Tensor) -> Tile:
    return Tile(tile.scores[lines], tile.noise if len(tile.noise) == 1 else tile.noise[lines])


def between(
    scores: Tensor, low: Tensor, high: Tensor | None = None, most: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of the scores [B, G] from low to high, both broadcastable; none where they are more than `most`.

    Minus infinity, which stands for what must not be counted, lies below every bound.
    """
    if scores.device.type != "cpu":
        near = scores >= low
        if high is not None:
            near &= scores <= high
        if most is not None and int(near.sum()) > most:
            return None
        found = near.nonzero()
        return found[:, 0], found[:, 1]
    if not scores.is_contiguous() and scores.T.is_contiguous():
        turned = between(scores.T, low.T, None if high is None else high.T, most)
        return None if turned is None else (turned[1], turned[0])
    values = scores.numpy()  # numpy finds few among many ten times as fast as torch
    flags = values >= low.numpy()
    if high is not None:
        flags &= values <= high.numpy()
    if most is not None and np.count_nonzero(flags) > most:
        return None
    row, column = np.divmod(np.flatnonzero(flags), max(1, scores.shape[1]))
    return torch.from_numpy(row), torch.from_numpy(column)
