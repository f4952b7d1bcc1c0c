"""Row normalisations of one row of scores, by their textbook formulas in plain Python."""

from __future__ import annotations

import math
import statistics


def row(name: str, scores: list[float], temperature: float) -> list[float]:
    """The row on the scale of the named normalisation."""
    if name == "none":
        return list(scores)
    if name == "row_l2":
        norm = math.sqrt(math.fsum(s * s for s in scores))
        return [s / norm if norm else 0.0 for s in scores]
    if name == "zscore":
        mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
        return [(s - mean) / deviation if deviation else 0.0 for s in scores]
    if name == "minmax":
        low, high = min(scores), max(scores)
        return [(s - low) / (high - low) if high > low else 0.0 for s in scores]
    if name == "softmax":
        total = math.fsum(math.exp((s - max(scores)) / temperature) for s in scores)
        return [math.exp((s - max(scores)) / temperature) / total for s in scores]
    if name == "rank":
        below = [sum(t < s for t in scores) + (scores.count(s) - 1) / 2 for s in scores]
        return [b / (len(scores) - 1) if len(scores) > 1 else 0.5 for b in below]
    raise KeyError(name)
