"""Calibration from the papers: Platt's scaling by Newton steps, and thresholds tried one after the other."""

from __future__ import annotations

import math

import numpy as np


def platt(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and bias of sigmoid(slope x score + bias): Newton's method on the likelihood of Platt's targets."""
    n_right = int(right.sum())
    n_wrong = len(right) - n_right
    targets = np.array([(n_right + 1) / (n_right + 2) if r else 1 / (n_wrong + 2) for r in right])
    inputs = np.stack([scores, np.ones(len(scores))], axis=1)
    found = np.array([0.0, math.log(targets.mean() / (1 - targets.mean()))])
    for _ in range(200):
        said = 1 / (1 + np.exp(-inputs @ found))
        gradient = inputs.T @ (said - targets)
        hessian = inputs.T @ (inputs * (said * (1 - said))[:, None])
        found = found - np.linalg.solve(hessian, gradient)
    return float(found[0]), float(found[1])


def at_least(hits: int, total: int, share: float) -> float:
    """Probability of `hits` or more of `total` where each is one with probability `share`."""
    return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(hits, total + 1))


def bound(hits: int, total: int, confidence: float) -> float:
    """Clopper and Pearson: the share at which as many hits are just still a surprise, by bisection."""
    if hits == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(hits, total, middle) < 1 - confidence else (low, middle)
    return low


def threshold(probability: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    """The lowest probability whose first places at or above it reach the precision by their bound."""
    best = None
    for at in sorted(set(probability.tolist()), reverse=True):
        through = probability >= at
        if bound(int(right[through].sum()), int(through.sum()), 0.95) >= precision:
            best = at
    return best


def calibration_error(rows: list[tuple[float, float, int]]) -> float:
    """Of bins (mean probability, share right, queries)."""
    return sum(n * abs(said - true) for said, true, n in rows) / sum(n for _, _, n in rows)
