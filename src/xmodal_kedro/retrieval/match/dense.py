"""An assignment over all pairs at once, with prices that prove it: n m numbers in memory, no graph that can mislead.

Scores that are sums of inner products come from matrix products in fp64. Their rounding differs from that of exact
scores, by a bound that enters the certificate; the value is the sum of exact scores.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from xmodal_kedro.retrieval.match.graph import ROUNDING, Solution, bound_of
from xmodal_kedro.retrieval.match.tiles import NotFiniteError, Part
from xmodal_kedro.retrieval.scores import MatrixScores, ScoreSource, Transposed
from xmodal_kedro.retrieval.scores.linear import LinearForm, linear_form
from xmodal_kedro.retrieval.tiles import slices

TALL = 256  # rows of the matrix that are computed together
FEW = 64  # rows whose reduced costs are computed together: they fit the cache
BYTES = 1 << 32  # a matrix of scores may take as much where sparse graphs fail


def solve_dense(scores: ScoreSource, forbidden: sparse.csr_array | None) -> tuple[Solution, float, int]:
    """Match as many rows as possible, with the highest sum of scores among those assignments.

    The solver is scipy's (Crouse, IEEE TAES 52, 2016). A forbidden pair costs more than all others can gain: a row that
    gets one stays alone.

    Args:
        scores: [n, m] with n <= m.
        forbidden: Pairs that may not be matched.

    Returns:
        The solution; the lowest reduced cost of all allowed pairs, less what rounding may hide; how many are allowed.

    Raises:
        NotFiniteError: The score of an allowed pair is not finite.
    """
    n, m = scores.shape
    costs, noise = _matrix(scores)
    np.negative(costs, out=costs)
    low, high = _hide(costs, forbidden)
    span = high - low if high > low else 1.0
    alone = 2 * span * (n + 2) - low  # more than all others together can gain
    hidden = np.isnan(costs) if forbidden is not None else None
    if hidden is not None:
        costs[hidden] = alone
    rows, chosen = linear_sum_assignment(costs)
    own = costs[rows, chosen]
    lonely = hidden[rows, chosen] if hidden is not None else np.zeros(n, dtype=bool)
    tolerance = 16 * ROUNDING * (n + 2) * span + 4 * ROUNDING * max(abs(low), abs(high))
    price = _highest_prices(costs, own, chosen, tolerance)
    rows_price, columns_price = price[chosen] - own, -price
    smallest = 0.0
    for part in slices(n, FEW):
        reduced = costs[part] - price
        smallest = min(smallest, float((reduced + rows_price[part, None]).min()))
    columns = np.where(lonely, -1, chosen)
    some = (~lonely).nonzero()[0]
    value = float(_pairs(scores, some, chosen[some]).sum())
    bound = bound_of(rows_price, columns_price, chosen, lonely, -alone)
    allowed = n * m - (0 if forbidden is None else forbidden.nnz)
    return Solution(columns, value, rows_price, columns_price, bound, tolerance), smallest - noise, allowed


def is_cheap(scores: ScoreSource) -> bool:
    """Whether all scores cost no more than a matrix product."""
    if isinstance(scores, Transposed | Part):
        return is_cheap(scores.source)
    return isinstance(scores, MatrixScores) or linear_form(scores) is not None


def _highest_prices(costs: np.ndarray, own: np.ndarray, chosen: np.ndarray, tolerance: float) -> np.ndarray:
    """The highest column prices [m] <= 0 with price_j <= price_chosen(i) + costs_ij - own_i.

    They are shortest paths to the columns from any of them, found by Howard's policy iteration (1960): every column
    takes the row that lowers it most as its predecessor, then whole paths are added up at once, by pointer doubling.
    """
    n, m = costs.shape
    price, length, before = np.zeros(m), np.zeros(m), np.arange(m)
    owner = np.full(m, -1)
    owner[chosen] = np.arange(n)
    rows = np.arange(n)
    for _ in range(n + 1):
        lowest, through = price - tolerance, np.full(m, -1)
        for part in slices(len(rows), FEW):
            some = rows[part]
            reach = costs[some]
            reach += (price[chosen[some]] - own[some])[:, None]
            lower = (reach.min(0) < lowest).nonzero()[0]
            best = reach[:, lower].argmin(0)
            lowest[lower], through[lower] = reach[best, lower], some[best]
        changed = (through >= 0).nonzero()[0]
        if len(changed) == 0:
            break
        before[changed] = chosen[through[changed]]
        length[changed] = costs[through[changed], changed] - own[through[changed]]
        total, ahead = length.copy(), before.copy()
        for _ in range(m.bit_length()):
            total, ahead = total + total[ahead], ahead[ahead]
        rows = owner[total < price]
        rows, price = rows[rows >= 0], total
    return price


def _hide(costs: np.ndarray, forbidden: sparse.csr_array | None) -> tuple[float, float]:
    """Overwrite forbidden pairs by NaN; the lowest and the highest score of the others, 0 and 0 if there are none."""
    high, low = np.inf, -np.inf  # as costs
    for part in slices(len(costs), TALL):
        block = costs[part]
        bad = ~np.isfinite(block)
        if forbidden is not None:
            hidden = forbidden[part].nonzero()
            bad[hidden] = False
            block[hidden] = np.nan
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise NotFiniteError(part.start + row, column)
        high = min(high, float(np.fmin.reduce(block, axis=None, initial=np.inf)))
        low = max(low, float(np.fmax.reduce(block, axis=None, initial=-np.inf)))
    return (-low, -high) if high <= low else (0.0, 0.0)


def _matrix(scores: ScoreSource) -> tuple[np.ndarray, float]:
    """All scores [n, m] fp64, and a bound on how far they are from exact ones."""
    n, m = scores.shape
    found = np.empty((n, m))
    rows, columns, turned, source = None, None, False, scores
    while isinstance(source, Transposed | Part):
        if isinstance(source, Part):
            rows = source.rows if rows is None else source.rows[rows]
            columns = source.columns if columns is None else source.columns[columns]
        else:
            rows, columns, turned = columns, rows, not turned
        source = source.source
    rows = torch.arange(source.shape[0], device=scores.device) if rows is None else rows
    columns = torch.arange(source.shape[1], device=scores.device) if columns is None else columns
    out = found.T if turned else found
    form = linear_form(source)
    right = [] if form is None else [one.gallery[columns].double() for one, _ in form.terms]
    for part in slices(len(rows), TALL):
        if isinstance(source, MatrixScores):
            block = source.matrix[rows[part]][:, columns].double()
        elif form is not None:
            block = _products(form, rows[part], right)
        else:
            both = rows[part].repeat_interleave(len(columns)), columns.repeat(part.stop - part.start)
            block = source.pairs(*both).view(-1, len(columns))
        out[part] = block.cpu().numpy()
    return found, 0.0 if form is None else _noise(form)


def _products(form: LinearForm, rows: Tensor, right: list[Tensor]) -> Tensor:
    """The block of a linear form [B, M] fp64, of all its terms' galleries in fp64."""
    block = form.offset[rows, None].expand(-1, len(right[0]))
    for (one, scale), gallery in zip(form.terms, right, strict=True):
        block = torch.addmm(block, one.queries[rows].double() * scale[rows, None], gallery.T)
    return block


def _noise(form: LinearForm) -> float:
    """Of both ways to add up in fp64: a rounding for each addition, and for each scale and offset on the way."""
    size = sum((scale * one._reach for one, scale in form.terms), form.offset.abs())
    additions = sum(one.queries.shape[1] + 8 for one, _ in form.terms)
    return 2 * ROUNDING * additions * float(size.max()) if len(size) else 0.0


def _pairs(scores: ScoreSource, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    sides = (torch.from_numpy(side.astype(np.int64)).to(scores.device) for side in (rows, columns))
    return np.asarray(scores.pairs(*sides).cpu().numpy())
