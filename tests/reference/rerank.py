"""Re-ranking of one text at a time, over a dense row: as published, and with the tail where it was."""

from __future__ import annotations

import numpy as np


def new_scores(fused: np.ndarray, logits: np.ndarray, formula: str) -> np.ndarray:
    """Scores of the candidates of one text, both [K]."""
    if formula == "fused_plus_unit_itm":
        return fused + logits / np.sqrt((logits**2).sum())
    return {"itm_plus_fused": fused + logits, "itm": logits}[formula]


def published(fused: np.ndarray, logits: np.ndarray, k: int) -> list[int]:
    """The whole row [M] in the published order: k candidates get their new score, then everything is sorted."""
    row = fused.copy()
    best = np.argsort(-row, kind="stable")[:k]
    if k:
        row[best] = new_scores(row[best], logits[best], "fused_plus_unit_itm")
    return np.argsort(-row, kind="stable").tolist()


def reranked(fused: np.ndarray, logits: np.ndarray, k: int, formula: str) -> list[int]:
    """The whole row [M]: the k candidates by their new scores, and behind them the others as they were."""
    order = np.argsort(-fused, kind="stable")
    best, tail = order[:k], order[k:]
    score = new_scores(fused[best], logits[best], formula)
    return [*best[np.argsort(-score, kind="stable")].tolist(), *tail.tolist()]
