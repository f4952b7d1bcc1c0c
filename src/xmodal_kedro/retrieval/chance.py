"""What a random order of the gallery would score: expected values in closed form, query by query.

A metric means little without it: with a thousand right answers in a gallery of three thousand, noise has a fine R@10.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from xmodal_kedro.retrieval.metric_names import parse


def chance(metric: str, relevant: np.ndarray, gallery: np.ndarray, queries: np.ndarray) -> float:
    """Expected value of a metric when every query's gallery is in random order.

    Args:
        metric: A name as in `metrics`.
        relevant: [n] number of relevant items of each judged query, at least 1.
        gallery: [n] size of the gallery that each is ranked in.
        queries: [n] number of queries that compete with each for a one-to-one match; itself included.

    Returns:
        The mean over queries of their expectations; for the median rank, the median of the best ranks of all queries.
        NaN without queries.
    """
    if len(relevant) == 0:
        return float("nan")
    cases, times = np.unique(np.stack([relevant, gallery, queries]), axis=1, return_counts=True)
    r, m, n = cases
    kind, k = parse(metric)
    if kind == "median_rank":
        return _median(r, m, times)
    values = {
        "recall": lambda: _reached(r, m, k),
        "map": lambda: _average_precision(r, m, k),
        "map_challenge": lambda: _average_precision_challenge(r, m, k),
        "ndcg": lambda: _gain(r, m, k),
        "mrr": lambda: np.array([_reciprocal(*case) for case in zip(r, m, strict=True)]),
        "mean_rank": lambda: (m + 1) / (r + 1),
        "matching_accuracy": lambda: r / np.maximum(m, n),
    }[kind]()
    return float(np.average(values, weights=times))


def _reached(r: np.ndarray, m: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """P(best rank <= k) = 1 - C(m - r, k) / C(m, k)."""
    k = np.minimum(k, m)
    missed = _log_choose(m - r, k) - _log_choose(m, k)
    return np.where(k > m - r, 1.0, -np.expm1(missed))


def _average_precision(r: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    """Place i is a hit with probability r/m; given that, each of the i - 1 before it is one with (r - 1)/(m - 1)."""
    total = np.zeros(len(r))
    for i in range(1, k + 1):
        precision = (1 + (i - 1) * (r - 1) / np.maximum(m - 1, 1)) / i
        total += np.where(i <= m, r / m * precision, 0.0)
    return total / np.minimum(r, k)


def _average_precision_challenge(r: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    """The denominator is the number of hits h, which is hypergeometric; given h, the hits lie anywhere in the list."""
    length = np.minimum(k, m)
    total = np.zeros(len(r))
    for h in range(1, k + 1):
        possible = (h <= np.minimum(r, length)) & (length - h <= m - r)
        log_p = _log_choose(r, h) + _log_choose(m - r, length - h) - _log_choose(m, length)
        probability = np.where(possible, np.exp(np.where(possible, log_p, 0.0)), 0.0)
        mean = np.zeros(len(r))
        for i in range(1, k + 1):
            precision = (1 + (i - 1) * (h - 1) / np.maximum(length - 1, 1)) / i
            mean += np.where(i <= length, precision / length, 0.0)  # h/length for the hit, divided by h
        total += probability * mean
    return total


def _gain(r: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    return r / m * gains[np.minimum(k, m)] / gains[np.minimum(r, k)]


def _reciprocal(r: int, m: int) -> float:
    places = np.arange(1, m - r + 2)
    reached = _reached(np.full(len(places), r), np.full(len(places), m), places)
    return float(np.sum(np.diff(reached, prepend=0.0) / places))


def _median(r: np.ndarray, m: np.ndarray, times: np.ndarray) -> float:
    low, high = 1, int(m.max())
    while low < high:
        middle = (low + high) // 2
        if np.average(_reached(r, m, middle), weights=times) >= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)


def _log_choose(n: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """log C(n, k); minus infinity where k > n."""
    left = np.maximum(n - k, 0)
    return np.where(k > n, -np.inf, gammaln(n + 1) - gammaln(np.add(k, 1)) - gammaln(left + 1))
