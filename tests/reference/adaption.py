"""Adaption re-ranking of one text, image by image, from the formulas of A3R."""

from __future__ import annotations

import numpy as np


def adapted_query(text: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """First principal component of the dimensions of the weighted anchors [A, D], on their side, of length 1."""
    cosines = np.array([anchor @ text for anchor in anchors])
    spread = cosines.max() - cosines.min()
    alpha = (cosines - cosines.min()) / spread if spread > 1e-7 else np.ones(len(cosines))
    samples = (alpha[:, None] * anchors).T  # [D, A]: a sample per dimension
    centred = samples - samples.mean(axis=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    values, axes = np.linalg.eigh(covariance)
    if values[-1] * (len(centred) - 1) <= 1e-14:
        return text
    component = centred @ axes[:, -1]
    if component @ samples.sum(axis=1) < 0:
        component = -component
    return component / np.linalg.norm(component)


def adaption_scores(
    text: np.ndarray, images: np.ndarray, mirrored: np.ndarray | None, anchors: int, neighbours: int
) -> list[float]:
    """Score of each candidate [K, D]."""
    views = [images] if mirrored is None else [images, mirrored]
    query = adapted_query(text, images[:anchors])
    count = range(len(images))

    def cosine(i: int) -> float:
        return max(view[i] @ query for view in views)

    def alike(i: int, j: int) -> float:
        return max(left[i] @ right[j] for left in views for right in views)

    def nearest(i: int) -> set[int]:
        others = [j for j in count if j != i]
        return set(sorted(others, key=lambda j: (-alike(i, j), j))[:neighbours])

    scores = []
    for i in count:
        around = images[i].copy()
        for j in nearest(i):
            if i in nearest(j):
                around += max(alike(i, j), 0.0) * images[j]
        scores.append(cosine(i) - (1 - around @ query / np.linalg.norm(around)))
    return scores
