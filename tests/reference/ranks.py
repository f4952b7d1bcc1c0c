"""Ranks and top tables by loops over the definition; scores as exact fractions, so that ties are real ties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def exact_scores(queries: np.ndarray, gallery: np.ndarray) -> list[list[Fraction]]:
    """Inner products of fp32 vectors without any rounding."""
    left = [[Fraction(float(v)) for v in row] for row in queries]
    right = [[Fraction(float(v)) for v in row] for row in gallery]
    return [[sum((a * b for a, b in zip(q, g, strict=True)), Fraction(0)) for g in right] for q in left]


def relevant_ranks(scores, relevance: np.ndarray, pessimistic: bool = True) -> list[list[int]]:
    """Rank of every relevant item of each query, in the order of the gallery."""
    found = []
    for row, relevant in zip(scores, relevance, strict=True):
        ranks = []
        for item, right in enumerate(relevant):
            if not right:
                continue
            rank = 1
            for other, other_right in enumerate(relevant):
                higher = row[other] > row[item]
                equal = row[other] == row[item] and other != item
                if other_right:
                    rank += higher or (equal and other < item)
                else:
                    rank += higher or (equal and pessimistic)
            ranks.append(int(rank))
        found.append(ranks)
    return found


def top(scores, k: int) -> list[list[int]]:
    """The k best gallery rows of each query; equal scores in the order of the gallery."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores]
