"""The bootstrap one resample at a time: draw clusters, line up their values, take the statistic."""

from __future__ import annotations

import itertools

import numpy as np


def resampled(values: np.ndarray, clusters: np.ndarray, statistic, resamples: int, seed: int) -> list[float]:
    """The statistic of each resample."""
    rng = np.random.default_rng(seed)
    names = sorted(set(clusters.tolist()))
    found = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(0, len(names), size=len(names))]
        found.append(statistic(np.concatenate([values[clusters == name] for name in drawn])))
    return found


def randomisation_p(differences: list[float]) -> float:
    """Share of all sign changes whose sum is at least as far from 0."""
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product([-1, 1], repeat=len(differences))]  # fmt: skip
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)
