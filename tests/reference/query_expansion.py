"""Alpha query expansion of one query, item by item."""

from __future__ import annotations

import numpy as np


def scores(query: np.ndarray, items: np.ndarray, expansion: int, alpha: float) -> list[float]:
    """Cosine of each candidate [K, D] with the query that its best ones were added to."""
    moved = query.copy()
    for item in items[:expansion]:
        if (cosine := query @ item) > 0:
            moved += cosine**alpha * item
    return [item @ moved / np.sqrt(moved @ moved) for item in items]
