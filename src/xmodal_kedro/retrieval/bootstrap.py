"""How sure a metric is: percentile intervals over resampled queries, and paired tests between two rankings.

Queries that are identical (the same text, the same vector) get identical results. They count as one draw, a cluster:
resampling them one by one would claim precision that the data does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

Statistic = Literal["mean", "median"]
AT_ONCE = 1 << 21  # numbers in a block of resamples


class Difference(NamedTuple):
    """Mean of a - b over queries, its interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float


def interval(
    values: np.ndarray,
    statistic: Statistic = "mean",
    *,
    clusters: np.ndarray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over queries.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Clusters are drawn whole.

    Args:
        values: [n] or [n, V] results of each query; the V columns share their resamples.
        statistic: `mean`, or `median` (with the two middle values averaged).
        clusters: [n] int from 0; queries with the same number are drawn together. None: each query on its own.
        resamples: How many.
        level: Share of resamples inside.
        seed: Of the resampling.

    Returns:
        Low and high ends, scalars or [V]; NaN for no queries or no resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0 or resamples == 0:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    columns = values.reshape(len(values), -1)
    groups = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    found = []
    for times in _draws(n_groups, resamples, np.random.default_rng(seed), width=len(values)):
        found.append(_means(columns, groups, times) if statistic == "mean" else _medians(columns, groups, times))
    ends = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0].reshape(values.shape[1:]), ends[1].reshape(values.shape[1:])


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Whether ranking a is better than ranking b on the same queries.

    The interval is the bootstrap's; p is that of the randomisation test, which swaps a and b at random within clusters
    (Smucker, Allan, Carterette: A comparison of statistical significance tests for information retrieval, CIKM 2007).

    Args:
        a: [n] results of each query.
        b: [n] results of the same queries in the same order.
        clusters: As in `interval`.
        resamples: Of both.
        level: Of the interval.
        seed: Of both.

    Raises:
        ValueError: The two have not the same number of queries, or none.
    """
    if np.shape(a) != np.shape(b) or len(a) == 0:
        raise ValueError(f"a paired test needs the same queries twice, not {len(a)} and {len(b)}.")
    change = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    low, high = interval(change, clusters=clusters, resamples=resamples, level=level, seed=seed)
    groups = np.arange(len(change)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(groups, weights=change)
    sums = sums[sums != 0.0]  # swapping equals changes nothing
    rng = np.random.default_rng([seed, 1])
    as_extreme, done = 0, 0
    while done < resamples:
        count = min(resamples - done, max(1, AT_ONCE // max(1, len(sums))))
        totals = (rng.integers(0, 2, size=(count, len(sums)), dtype=np.int8) * 2.0 - 1.0) @ sums
        as_extreme += int((np.abs(totals) >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()).sum())
        done += count
    return Difference(float(change.mean()), float(low), float(high), (1 + as_extreme) / (1 + resamples))


def _draws(n_groups: int, resamples: int, rng: np.random.Generator, width: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, [b, n_groups], in blocks whose size does not change the numbers."""
    block = max(1, AT_ONCE // max(n_groups, width))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        picks = rng.integers(0, n_groups, size=(count, n_groups)) + np.arange(count)[:, None] * n_groups
        yield np.bincount(picks.ravel(), minlength=count * n_groups).reshape(count, n_groups)


def _means(values: np.ndarray, groups: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[b, V]"""
    sums = np.stack([np.bincount(groups, weights=column) for column in values.T], axis=1)  # [groups, V]
    weights = times.astype(np.float64)
    return (weights @ sums) / (weights @ np.bincount(groups).astype(np.float64))[:, None]


def _medians(values: np.ndarray, groups: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[b, V]"""
    found = np.empty((len(times), values.shape[1]))
    for number, column in enumerate(values.T):
        order = np.argsort(column, kind="stable")
        drawn = times[:, groups[order]].cumsum(axis=1)  # [b, n]
        half = drawn[:, -1:] / 2
        lower, upper = (drawn >= half).argmax(axis=1), (drawn > half).argmax(axis=1)
        found[:, number] = (column[order[lower]] + column[order[upper]]) / 2
    return found
