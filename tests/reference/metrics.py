"""Retrieval metrics by loops over a ranked list of right and wrong, as their definitions are written."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ranked(scores: Sequence[float], relevant: Sequence[bool]) -> list[bool]:
    """Right or wrong from the best item down; of equal scores the wrong ones come first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], bool(relevant[i])))
    return [bool(relevant[i]) for i in order]


def value(metric: str, right: Sequence[bool]) -> float:
    """A metric of one ranked list that holds at least one right item."""
    if metric == "mrr":
        return 1 / (right.index(True) + 1)
    if metric in ("median_rank", "mean_rank"):
        return right.index(True) + 1
    kind, k = metric.removesuffix("_challenge").split("_at_")
    k = int(k)
    if kind == "recall":
        return float(any(right[:k]))
    if kind == "map":
        precisions = [sum(right[:i]) / i for i in range(1, min(k, len(right)) + 1) if right[i - 1]]
        if metric.endswith("_challenge"):
            return sum(precisions) / max(1, len(precisions))
        return sum(precisions) / min(k, sum(right))
    if kind == "ndcg":
        gain = sum(1 / math.log2(i + 1) for i in range(1, min(k, len(right)) + 1) if right[i - 1])
        return gain / sum(1 / math.log2(i + 1) for i in range(1, min(k, sum(right)) + 1))
    raise KeyError(metric)
