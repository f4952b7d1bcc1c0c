"""Whether prices hold for every allowed pair: a pass over all scores that returns the pairs for which they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.match.graph import Solution
from xmodal_kedro.retrieval.match.tiles import WIDTH, Forbidden, height
from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile
from xmodal_kedro.retrieval.tiles import slices

TOO_MANY = 64  # one in so many entries of a coarse tile in doubt: a fine tile costs less than their exact scores
AT_ONCE = 1 << 15  # pairs in doubt whose exact scores are computed together
ADDED = 32  # most violating pairs per row that are kept


@dataclass(frozen=True, eq=False)
class Violating:
    """Pairs whose prices do not cover their score, by more than rounding.

    Attributes:
        keys: [K] int64, distinct: row * M + column; the worst ones, where there are very many.
        scores: [K] fp64, exact.
        count: How many there are in all.
        smallest: Lowest reduced cost of all pairs.
    """

    keys: np.ndarray
    scores: np.ndarray
    count: int
    smallest: float


def check(scores: ScoreSource, forbidden: Forbidden, solution: Solution, size: float) -> Violating:
    """Look for allowed pairs with u_i + v_j < s_ij, in memory for a few tiles and for what is found.

    Coarse tiles and then fine ones sort out, by the bound on their error, the pairs for which this cannot be; exact
    scores decide the rest.

    Args:
        scores: [N, M].
        forbidden: Pairs that need no check.
        solution: Its prices.
        size: No score is further from 0.
    """
    search = _Search(scores, forbidden, solution, size)
    rows = list(slices(scores.shape[0], height(scores.device)))
    for queries in tqdm(rows, desc="prove", unit="block", delay=3, leave=False, disable=None):
        for gallery in slices(scores.shape[1], WIDTH):
            search.see(queries, gallery)
    search.decide()
    search.keep_worst()
    keys, found = search.keys.cpu().numpy(), search.found.cpu().numpy()
    return Violating(keys, found, search.count, min(search.smallest, 0.0))


class _Search:
    """What the check has found so far, and what it has yet to decide."""

    def __init__(self, scores: ScoreSource, forbidden: Forbidden, solution: Solution, size: float) -> None:
        self.scores, self.forbidden = scores, forbidden
        self.tolerance = 4 * solution.tolerance  # of what the solver took for covered, nothing is reported
        device = scores.device
        self.exact_prices = tuple(
            torch.from_numpy(price).to(device) for price in (solution.rows_price, solution.columns_price)
        )
        # next to the prices of rows that cannot be matched, fp32 would forget the scores
        dtype = torch.float64 if solution.unmatched else torch.float32
        self.u, self.v = (price.to(dtype) for price in self.exact_prices)
        largest = sum(float(price.abs().max()) for price in self.exact_prices)
        self.rounding = 4 * torch.finfo(dtype).eps * largest + 8 * FP32_ROUNDING * size
        self.coarse, self.tiles, self.refined = True, 0, 0
        self.doubts: list[Tensor] = []  # keys
        self.keys = torch.empty(0, dtype=torch.int64, device=device)
        self.found, self.costs = (torch.empty(0, dtype=torch.float64, device=device) for _ in range(2))
        self.count, self.smallest = 0, np.inf
        self.chance = torch.Generator(device).manual_seed(0)

    def see(self, queries: slice, gallery: slice) -> None:
        """Sort out what is sure in a block."""
        rows, columns = self._doubtful(self.scores.tile(queries, gallery, coarse=self.coarse), queries, gallery)
        self.tiles += 1
        block = (queries.stop - queries.start) * (gallery.stop - gallery.start)
        if self.coarse and len(rows) * TOO_MANY > block:
            self.refined += 1
            self.coarse = self.refined <= 2 + self.tiles // 2  # where most are of no use, fine ones come at once
            rows, columns = self._doubtful(self.scores.tile(queries, gallery), queries, gallery)
        if len(rows):
            self.doubts.append((rows + queries.start) * self.scores.shape[1] + (columns + gallery.start))
            if sum(len(part) for part in self.doubts) > AT_ONCE:
                self.decide()

    def _doubtful(self, tile: Tile, queries: slice, gallery: slice) -> tuple[Tensor, Tensor]:
        """Rows and columns of a block where prices may not cover the score."""
        self.forbidden.hide(tile.scores, queries, gallery)
        reach = tile.scores.to(self.u.dtype).sub_(self.v[gallery])
        bound = (self.u[queries] - self.rounding)[:, None]
        if tile.noise.shape[1] == 1:
            bound = bound - tile.noise
        else:
            reach.add_(tile.noise)
        some = (reach.amax(1) >= bound[:, 0]).nonzero()[:, 0]
        which, columns = (reach[some] >= bound[some]).nonzero(as_tuple=True)
        return some[which], columns

    def decide(self) -> None:
        """Exact scores for what is in doubt."""
        if not self.doubts:
            return
        keys = torch.cat(self.doubts)
        self.doubts = []
        rows, columns = keys // self.scores.shape[1], keys % self.scores.shape[1]
        exact = self.scores.pairs(rows, columns)
        costs = self.exact_prices[0][rows] + self.exact_prices[1][columns] - exact
        self.smallest = min(self.smallest, float(costs.min()))
        bad = costs < -self.tolerance
        if bool(bad.any()):
            self.count += int(bad.sum())
            self.keys = torch.cat([self.keys, keys[bad]])
            self.found = torch.cat([self.found, exact[bad]])
            self.costs = torch.cat([self.costs, costs[bad]])
            if len(self.keys) > 2 * ADDED * self.scores.shape[0]:
                self.keep_worst()

    def keep_worst(self) -> None:
        """Drop all but the worst; chance decides among equal ones, so that equal rows get different columns."""
        if len(self.keys) > (limit := ADDED * self.scores.shape[0]):
            chance = torch.rand(len(self.costs), generator=self.chance, device=self.costs.device, dtype=torch.float64)
            worst = (self.costs * (0.5 + chance)).topk(limit, largest=False).indices
            self.keys, self.found, self.costs = self.keys[worst], self.found[worst], self.costs[worst]
