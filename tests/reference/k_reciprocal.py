"""k-reciprocal re-ranking of one query by sets, from the definitions of arXiv 1701.08398."""

from __future__ import annotations

import math

import numpy as np


def orders(gallery: np.ndarray) -> list[list[int]]:
    """Of every item: itself, then the others by their cosine with it, the earlier first of equal ones."""
    every = range(len(gallery))
    return [[i, *sorted((j for j in every if j != i), key=lambda j: (-(gallery[i] @ gallery[j]), j))] for i in every]


def reciprocal(order: list[list[int]], i: int, k: int) -> set[int]:
    """Equation 2, the item itself being among its own neighbours."""
    return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}


def expanded(order: list[list[int]], members: set[int], k: int) -> set[int]:
    """Equation 3: neighbours of neighbours that are mostly members already."""
    found = set(members)
    for j in members:
        half = reciprocal(order, j, max(1, round(k / 2)))
        if 3 * len(members & half) >= 2 * len(half):
            found |= half
    return found


def encoded(vector: np.ndarray, gallery: np.ndarray, support: set[int]) -> np.ndarray:
    """Equation 7 over the gallery, with a sum of 1."""
    code = np.zeros(len(gallery))
    for g in support:
        code[g] = math.exp(-(1 - vector @ gallery[g]))
    return code / code.sum()


def scores(
    query: np.ndarray, gallery: np.ndarray, candidates: list[int], first: list[float], k: int, share: float
) -> list[float]:
    """Score of each candidate: minus the distance of equation 12, with distances turned to similarities."""
    k2, order = max(1, round(k / 3)), orders(gallery)
    codes = {i: encoded(gallery[i], gallery, expanded(order, reciprocal(order, i, k), k)) for i in range(len(gallery))}
    smooth = {i: np.mean([codes[j] for j in order[i][:k2]], axis=0) for i in codes}  # equation 11
    own = encoded(query, gallery, expanded(order, set(candidates[:k]), k))
    own = np.mean([own, *(smooth[j] for j in candidates[: k2 - 1])], axis=0)
    low, high = min(first), max(first)
    found = []
    for i, score in zip(candidates, first, strict=True):
        distance = 1 - np.minimum(own, smooth[i]).sum() / np.maximum(own, smooth[i]).sum()  # equation 10
        original = (high - score) / (high - low) if high > low else 0.0
        found.append(1 - ((1 - share) * distance + share * original))
    return found
