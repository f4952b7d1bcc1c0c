"""One-to-one matching by trying all of them, and by the dense solver for sizes where that would take too long."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def best_of_all(scores: np.ndarray, allowed: np.ndarray | None = None) -> tuple[int, float]:
    """Most pairs that can be matched, and the highest sum of so many scores: every row takes a free item, or none."""
    n, m = scores.shape
    allowed = np.ones((n, m), dtype=bool) if allowed is None else allowed

    def best(row: int, free: frozenset[int]) -> tuple[int, float]:
        if row == n:
            return 0, 0.0
        found = [best(row + 1, free)]
        for column in free:
            if allowed[row, column]:
                count, total = best(row + 1, free - {column})
                found.append((count + 1, total + float(scores[row, column])))
        return max(found)

    return best(0, frozenset(range(m)))


def dense(scores: np.ndarray, allowed: np.ndarray | None = None) -> tuple[int, float]:
    """The same by scipy's dense solver: a pair that is not allowed costs more than all others can gain."""
    allowed = np.ones(scores.shape, dtype=bool) if allowed is None else allowed
    worst = 10 * (1 + np.abs(scores).max(initial=0.0)) * (1 + min(scores.shape))
    rows, columns = linear_sum_assignment(np.where(allowed, scores.astype(np.float64), -worst), maximize=True)
    kept = allowed[rows, columns]
    return int(kept.sum()), float(scores.astype(np.float64)[rows[kept], columns[kept]].sum())
