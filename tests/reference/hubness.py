"""Normalisations against hubs, dense in fp64 NumPy, as their papers write them."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def csls(scores: np.ndarray, bank: np.ndarray, neighbours: int) -> np.ndarray:
    """2 cos(x, y) - r_T(x) - r_S(y), where r is the mean over the nearest neighbours (Conneau et al., 2018)."""
    n, m = scores.shape
    r_t = [np.mean(sorted(scores[i])[::-1][:neighbours]) for i in range(n)]
    r_s = [np.mean(sorted(bank[:, j])[::-1][:neighbours]) for j in range(m)]
    return np.array([[2 * scores[i, j] - r_t[i] - r_s[j] for j in range(m)] for i in range(n)])


def dual_softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Score times prior: the softmax over the queries of a column (Cheng et al., 2021)."""
    lifted = np.exp((scores - scores.max(0)) / temperature)
    return scores * lifted / lifted.sum(0)


def inverted_softmax(scores: np.ndarray, bank: np.ndarray, temperature: float) -> np.ndarray:
    """exp(s) / (alpha * sum of the bank's exp(s)); alpha makes each query's row a probability (Smith et al., 2017)."""
    shares = np.exp(scores / temperature) / np.exp(bank / temperature).sum(0)
    return shares / shares.sum(1, keepdims=True)


def qb_norm(scores: np.ndarray, bank: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The dynamic inverted softmax (Bogolin et al., 2022), and which queries it changes."""
    activated = {int(np.argmax(row)) for row in bank}
    result, changed = scores.copy(), np.zeros(len(scores), dtype=bool)
    for query, row in enumerate(scores):
        if int(np.argmax(row)) in activated:
            changed[query] = True
            result[query] = np.exp(row / temperature) / np.exp(bank / temperature).sum(0)
    return result, changed


def sinkhorn(scores: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """Rows that sum to 1, then columns that sum to N / M, in turn (Sinkhorn and Knopp, 1967)."""
    n, m = scores.shape
    plan = np.exp((scores - scores.max()) / temperature)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0) * (n / m)
    return plan


def rank(scores: np.ndarray) -> np.ndarray:
    """(rank - 1) / (M - 1) from the worst, ties averaged; 1/2 in a row of one."""
    m = scores.shape[1]
    return np.array([(rankdata(row) - 1) / (m - 1) if m > 1 else [0.5] for row in scores])
