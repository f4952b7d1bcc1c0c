"""An assignment on a sparse graph, solved exactly, with prices that prove it: scipy's solver and shortest paths."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

ROUNDING = 2.0**-52


@dataclass(frozen=True, eq=False)
class Graph:
    """Allowed pairs of n rows and m >= n columns, in the order of the rows.

    Attributes:
        shape: (n, m).
        keys: [E] int64, ascending and distinct: row * m + column.
        scores: [E] fp64.
    """

    shape: tuple[int, int]
    keys: np.ndarray
    scores: np.ndarray

    def with_more(self, keys: np.ndarray, scores: np.ndarray) -> Graph:
        """The graph with edges that it does not have yet, in any order."""
        keys, scores = np.concatenate([self.keys, keys]), np.concatenate([self.scores, scores])
        order = keys.argsort(kind="stable")
        return Graph(self.shape, keys[order], scores[order])

    def has(self, keys: np.ndarray) -> np.ndarray:
        """[K] whether each pair is an edge."""
        if len(self.keys) == 0:
            return np.zeros(len(keys), dtype=bool)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.asarray(self.keys[place] == keys)


@dataclass(frozen=True, eq=False)
class Solution:
    """The best assignment on a graph among those with most pairs, and its prices.

    Attributes:
        columns: [n] int64 column of each row, -1 for rows without one.
        value: Sum of its scores.
        rows_price: [n] fp64 u.
        columns_price: [m] fp64 v >= 0, 0 for columns without a row; u_i + v_j >= s_ij on every edge, with equality
            on the assignment, up to `tolerance`.
        bound: Of the sum of any assignment with as many pairs on the graph, and wherever prices cover the scores.
        tolerance: What rounding may take from a reduced cost.
    """

    columns: np.ndarray
    value: float
    rows_price: np.ndarray
    columns_price: np.ndarray
    bound: float
    tolerance: float

    @property
    def unmatched(self) -> int:
        """Rows without a column."""
        return int((self.columns < 0).sum())


def solve(graph: Graph, low: float, high: float) -> Solution:
    """Match as many rows as possible, with the highest sum of scores among those assignments.

    The solver is that of Jonker and Volgenant (Computing 38, 1987), dense (Crouse, IEEE TAES 52, 2016) where the graph
    has all pairs, else sparse; the latter matches all rows or none, so where
    some must stay alone every row gets a column of its own that no assignment with more pairs would need: its cost
    exceeds what all others together can gain. Prices are shortest path lengths (Bellman-Ford) in the residual graph.
    There are many; the middle between the highest and the lowest ones leaves the fewest other pairs in doubt.

    Args:
        graph: At least the edges from which to choose.
        low: No score of an allowed pair, in the graph or not, is lower.
        high: None is higher.
    """
    n, m = graph.shape
    span = high - low if high > low else 1.0
    rows, columns = np.divmod(graph.keys, m)
    starts = np.searchsorted(rows, np.arange(n + 1))
    costs = (2 * span + low) - graph.scores  # in [span, 2 span]: the solver knows no edges of cost 0
    alone = 2 * span * (n + 2)
    tolerance = 16 * ROUNDING * (n + 2) * span + 4 * ROUNDING * max(abs(low), abs(high))
    chosen = _matched(costs, columns, starts, m, alone)  # [n]; m + i: row i stays alone
    own = np.full(n, alone)  # cost of each row's choice
    taken = columns == chosen[rows]
    own[rows[taken]] = costs[taken]
    residual = _Residual(m, rows, columns, starts, costs - own[rows], chosen, tolerance)
    price = residual.middle(own - alone)  # [m] <= 0
    row_price = (2 * span + low) - (own - np.where(chosen < m, price[np.minimum(chosen, m - 1)], 0.0))
    price = -price
    if n == m and (chosen < m).all():  # both may move against each other: small numbers round best
        shift = price.min() if n else 0.0
        price, row_price = price - shift, row_price + shift
    value = float(graph.scores[taken].sum())
    bound = bound_of(row_price, price, chosen, chosen >= m, 2 * span + low - alone)
    return Solution(np.where(chosen < m, chosen, -1), value, row_price, price, bound, tolerance)


def bound_of(
    rows_price: np.ndarray, columns_price: np.ndarray, chosen: np.ndarray, lonely: np.ndarray, alone: float
) -> float:
    """What no assignment with as many pairs can exceed: the sum of all prices, less what the lonely rows pay.

    The prices of rows that stay alone, and of those that compete with them, exceed all scores by far, so that their sum
    would round away the scores: a row's and its column's, which differ by a score, are added first.

    Args:
        rows_price: [n].
        columns_price: [m].
        chosen: [n] column of each row; m or more: none.
        lonely: [n] whether the row stays alone, whatever is chosen.
        alone: The score of staying alone.
    """
    m = len(columns_price)
    left = columns_price.copy()
    left[chosen[chosen < m]] = 0.0
    sums = rows_price + np.where(chosen < m, columns_price[np.minimum(chosen, m - 1)], 0.0) - np.where(lonely, alone, 0)
    return fsum(sums) + fsum(left)


def _matched(costs: np.ndarray, columns: np.ndarray, starts: np.ndarray, m: int, alone: float) -> np.ndarray:
    """[n] the column of each row at the lowest sum of costs; m + i where row i stays alone."""
    n = len(starts) - 1
    if len(costs) == n * m:
        return np.asarray(linear_sum_assignment(costs.reshape(n, m))[1], dtype=np.int64)
    graph = sparse.csr_array((costs, columns.astype(np.int32), starts.astype(np.int32)), shape=(n, m))
    try:
        return min_weight_full_bipartite_matching(graph)[1].astype(np.int64)
    except ValueError as error:
        if "no full matching" not in str(error):
            raise
    graph = sparse.hstack([graph, sparse.diags_array(np.full(n, alone))], format="csr")
    return min_weight_full_bipartite_matching(graph)[1].astype(np.int64)


class _Residual:
    """Where column prices (of costs: never above 0) may not differ by more: v[column] <= v[chosen[row]] + slack."""

    def __init__(
        self,
        m: int,
        rows: np.ndarray,
        columns: np.ndarray,
        starts: np.ndarray,
        slack: np.ndarray,
        chosen: np.ndarray,
        tolerance: float,
    ) -> None:
        n = len(chosen)
        self.m, self.rows, self.columns, self.starts, self.slack = m, rows, columns, starts, slack
        self.chosen, self.tolerance = chosen, tolerance
        self.owner = np.full(m + n, -1, dtype=np.int64)
        self.owner[chosen] = np.arange(n)
        # the same edges in the order of the columns, for the way back
        self.by_column = columns.argsort(kind="stable")
        self.column_starts = np.searchsorted(columns[self.by_column], np.arange(m + 1))

    def middle(self, floor: np.ndarray) -> np.ndarray:
        """[m] prices halfway between the highest and the lowest; `floor` [n]: below it a row would stay alone."""
        highest = self._lowered(np.zeros(len(self.owner)))
        start = np.zeros(len(self.owner))
        start[self.chosen] = np.maximum(highest.min(initial=0.0), floor)
        start[self.m :] = 0.0
        return ((highest + self._raised(start)) / 2)[: self.m]

    def _lowered(self, price: np.ndarray) -> np.ndarray:
        """The highest prices that are nowhere above the given ones."""
        rows = np.arange(len(self.chosen))
        for _ in range(len(self.owner) + 1):
            edges = edges_of(rows, self.starts)
            reached, price_there = self.columns[edges], price[self.chosen[self.rows[edges]]] + self.slack[edges]
            lower = price_there < price[reached] - self.tolerance
            if not lower.any():
                break
            np.minimum.at(price, reached[lower], price_there[lower])
            rows = _distinct(self.owner[reached[lower]], len(self.chosen))
        return price

    def _raised(self, price: np.ndarray) -> np.ndarray:
        """The lowest prices that are nowhere below the given ones."""
        columns = np.arange(self.m)
        for _ in range(len(self.owner) + 1):
            edges = self.by_column[edges_of(columns, self.column_starts)]
            reached, price_there = self.chosen[self.rows[edges]], price[self.columns[edges]] - self.slack[edges]
            higher = price_there > price[reached] + self.tolerance
            higher &= reached < self.m
            if not higher.any():
                break
            np.maximum.at(price, reached[higher], price_there[higher])
            columns = _distinct(reached[higher], self.m)
        return price


def edges_of(nodes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Positions of the edges of some nodes, of edges that are sorted by node."""
    if len(nodes) == len(starts) - 1:
        return np.arange(starts[-1])
    counts = starts[nodes + 1] - starts[nodes]
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + (starts[nodes] - ends + counts).repeat(counts)


def _distinct(nodes: np.ndarray, count: int) -> np.ndarray:
    """Distinct nodes of [0, count); negative ones are dropped."""
    found = np.zeros(count, dtype=bool)
    found[nodes[nodes >= 0]] = True
    return found.nonzero()[0]
