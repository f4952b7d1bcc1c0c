"""One-to-one matching by trying all of them."""

from __future__ import annotations

import itertools

import numpy as np


def best_sum(scores: np.ndarray) -> float:
    """Highest sum of scores over all one-to-one assignments of the shorter side."""
    if scores.shape[0] > scores.shape[1]:
        scores = scores.T
    choices = itertools.permutations(range(scores.shape[1]), scores.shape[0])
    return max(sum(scores[row, column] for row, column in enumerate(chosen)) for chosen in choices)
