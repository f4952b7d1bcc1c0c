"""Pairs among which an assignment is sought first: the best of every row and of every column, found in one pass.

The search may miss some, and does: it takes coarse tiles, and of every few neighbouring scores the highest alone. What
it misses is found by the check that follows (`check`), so it only has to be fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.match.graph import edges_of
from xmodal_kedro.retrieval.match.tiles import HIDDEN, WIDTH, Forbidden, checked_range, height
from xmodal_kedro.retrieval.scores import ScoreSource
from xmodal_kedro.retrieval.tiles import slices

CHUNK = 4096  # rows and columns whose highest scores are gathered before they are sorted out
BLOCK = 32  # most neighbours of which one is taken
STEP = 1265  # odd and near 2048 over the golden ratio: tied rows prefer other columns each
TURNS = 60  # after which rows that still look for a column are taken to find none
LOST = 0.05  # of the spread of a row's scores: an error of coarse tiles that changes little in who is best


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the first pass over all scores found.

    Attributes:
        keys: [E] int64, ascending and distinct: row * M + column.
        low: No score is lower.
        high: None is higher.
        alone: About how many rows find no partner among the best pairs, each a column of its own.
    """

    keys: np.ndarray
    low: float
    high: float
    alone: int = 0


def find_candidates(scores: ScoreSource, forbidden: Forbidden, k: int) -> Candidates:
    """About the best k of every row and of every column, and a pair per row that has a matching in it; none forbidden.

    The place of a score within its tile is written into its lowest bits, so that the maximum of a block also tells
    where it is; equal scores are told apart by these bits, which differ from row to row, so that many equal rows do not
    all ask for the same columns.

    Raises:
        NotFiniteError: A score is not finite.
    """
    n, m = scores.shape
    tall = height(scores.device)
    coarse, middle = _how_to_look(scores, tall)
    places = _places(tall, scores.device)
    by_row, by_column = _Best(n, k, scores.device), _Best(m, k, scores.device)
    wide_block, tall_block = (max(1, min(BLOCK, length // (8 * k))) for length in (m, n))
    low, high = np.inf, -np.inf
    for chunk in tqdm(list(slices(n, CHUNK)), desc="match", unit="block", delay=3, leave=False, disable=None):
        for across in slices(m, CHUNK):
            for queries in slices(chunk.stop, tall, chunk.start):
                for gallery in slices(across.stop, WIDTH, across.start):
                    tile = scores.tile(queries, gallery, coarse=coarse)
                    lowest, highest = checked_range(tile.scores, queries, gallery)
                    noise = float(tile.noise.amax())
                    low, high = min(low, lowest - noise), max(high, highest + noise)
                    found = tile.scores.sub_(middle).contiguous()
                    forbidden.hide(found, queries, gallery)
                    bits = found.view(torch.int32)
                    bits.bitwise_and_(~(WIDTH - 1)).bitwise_or_(places[: bits.shape[0], : bits.shape[1]])
                    by_row.take(_highest(found, wide_block, 1), gallery)
                    by_column.take(_highest(found, tall_block, 0).T, queries)
            by_row.sort_out(chunk, tall, lambda code, row: code - row * STEP)
            by_column.sort_out(across, WIDTH, lambda code, column: (code - column) * pow(STEP, -1, WIDTH))
    (row, column), (found_column, found_row) = by_row.pairs(), by_column.pairs()
    some = forbidden.left_of(torch.arange(n, device=scores.device) * (m + 1))  # all of them are a matching, if not good
    best = torch.cat([row * m + column, found_row * m + found_column]).unique()
    keys = torch.cat([best, some]).unique()
    return Candidates(keys.cpu().numpy(), low, high, _alone(best.cpu().numpy(), (n, m)))


def _alone(keys: np.ndarray, shape: tuple[int, int]) -> int:
    """Rows that are left without a column of their own after a while.

    Each row in turn takes the column that was taken least often, from whoever has it (an auction, Bertsekas 1979, whose
    prices count takers): soon over where all find one. Proper matchings may take minutes on just the graphs that this
    is to tell.
    """
    n, m = shape
    rows, columns = np.divmod(keys, m)
    starts = np.searchsorted(rows, np.arange(n + 1))
    takers, owner = np.zeros(m, dtype=np.int64), np.full(m, -1)
    some = np.diff(starts) > 0
    free = some.nonzero()[0]
    for _ in range(TURNS):
        if len(free) == 0:
            break
        edges = edges_of(free, starts)
        order = takers[columns[edges]] * m + (columns[edges] + rows[edges] * STEP) % m  # rows prefer other columns each
        first = np.diff(starts)[free].cumsum() - np.diff(starts)[free]
        wanted = (np.minimum.reduceat(order, first) - free * STEP) % m
        before = owner[wanted]
        owner[wanted] = free  # of several rows the last one gets it
        takers[wanted] += 1
        free = np.setdiff1d(np.concatenate([free, before[before >= 0]]), owner)
    return len(free) + int((~some).sum())


class _Best:
    """The highest scores of each row (or each column), while tiles stream by."""

    def __init__(self, count: int, k: int, device: torch.device) -> None:
        self.scores = torch.full((count, k), HIDDEN, device=device)
        self.others = torch.zeros((count, k), dtype=torch.int32, device=device)
        self.seen: dict[int, list[Tensor]] = {}  # start of the other side's tile -> [own, entries], own side in order

    def take(self, highest: Tensor, other: slice) -> None:
        """Keep the highest [own, entries] of a tile, in whose lowest bits it says where they are."""
        self.seen.setdefault(other.start, []).append(highest)

    def sort_out(self, own: slice, step: int, place_of: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put what was taken for these rows among their best; `place_of` tells where from bits and own place."""
        columns = [torch.cat(parts) for parts in self.seen.values()]
        starts = [torch.full((part.shape[1],), start) for start, part in zip(self.seen, columns, strict=True)]
        self.seen = {}
        found = torch.cat(columns, 1)
        scores, order = found.topk(min(self.scores.shape[1], found.shape[1]), dim=1)
        code = scores.view(torch.int32).bitwise_and(WIDTH - 1)
        places = (torch.arange(len(found), dtype=torch.int32, device=found.device) % step)[:, None]
        others = torch.cat(starts).int().to(found.device)[order] + (place_of(code, places) & (WIDTH - 1))
        scores, others = torch.cat([self.scores[own], scores], 1), torch.cat([self.others[own], others], 1)
        self.scores[own], order = scores.topk(self.scores.shape[1], dim=1)
        self.others[own] = others.gather(1, order)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Own places and those of the others [K] int64; those that are forbidden, or are none, are left out."""
        own, rank = (self.scores > HIDDEN / 2).nonzero(as_tuple=True)
        return own, self.others[own, rank].long()


def _highest(scores: Tensor, block: int, dim: int) -> Tensor:
    """The highest of every `block` scores along a dimension; neighbours in a block lie far apart, the rest stays."""
    count = scores.shape[dim] // block
    whole = scores.narrow(dim, 0, count * block).unflatten(dim, (block, count)).amax(dim)
    rest = scores.narrow(dim, count * block, scores.shape[dim] - count * block)
    return torch.cat([whole, rest], dim)


def _places(tall: int, device: torch.device) -> Tensor:
    """[tall, WIDTH] int32 below WIDTH, distinct in each row and column: with one of both known, it tells the other."""
    rows, columns = (torch.arange(length, dtype=torch.int32, device=device) for length in (tall, WIDTH))
    return (columns + STEP * rows[:, None]) & (WIDTH - 1)


def _how_to_look(scores: ScoreSource, tall: int) -> tuple[bool, float]:
    """Whether coarse tiles are good enough to find the best, and the mean score, by a look at the first tile."""
    first = slice(0, min(tall, scores.shape[0])), slice(0, min(WIDTH, scores.shape[1]))
    fine, coarse = scores.tile(*first).scores, scores.tile(*first, coarse=True).scores
    error, spread = (fine - coarse).square().mean().sqrt(), (fine - fine.mean(1, keepdim=True)).square().mean().sqrt()
    return bool(error <= LOST * spread), float(fine.mean())
