"""The names of metrics, and what they ask for; torch-free, so that configs can be checked against them."""

from __future__ import annotations

import re

_NAME = re.compile(r"(recall|ndcg|map)_at_([1-9]\d*)(_challenge)?")
WHOLE = ("median_rank", "mean_rank", "mrr", "matching_accuracy")


def parse(name: str) -> tuple[str, int]:
    """Kind and cut-off of a metric.

    Args:
        name: `recall_at_K`, `map_at_K`, `map_at_K_challenge`, `ndcg_at_K`, `median_rank`, `mean_rank`, `mrr` or
            `matching_accuracy`.

    Returns:
        The kind (`recall`, `map`, `map_challenge`, `ndcg`, or the name itself) and K (0 where there is none).

    Raises:
        ValueError: There is no such metric.
    """
    if name in WHOLE:
        return name, 0
    found = _NAME.fullmatch(name)
    if found is None or (found[3] and found[1] != "map"):
        raise ValueError(
            f"there is no metric '{name}'; there are recall_at_K, map_at_K, map_at_K_challenge, ndcg_at_K, "
            f"{', '.join(WHOLE)}, with a number for K."
        )
    return found[1] + (found[3] or ""), int(found[2])


def higher_is_better(name: str) -> bool:
    """Whether more is better: for all but the ranks. These metrics lie between 0 and 1."""
    return parse(name)[0] not in ("median_rank", "mean_rank")
