"""One-to-one matching of queries and gallery items: the assignment with the highest sum of scores, and its baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource

MATCH_TILE = (512, 2048)


class MatchTooLargeError(MemoryError):
    """The cost matrix of an assignment does not fit the memory that it may take."""


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs in the order of the queries.

    Attributes:
        shape: (N, M), queries and gallery.
        query_rows: [K] int64, ascending; K = min(N, M) for an assignment.
        gallery_rows: [K] int64; distinct for an assignment.
        scores: [K] fp32.
    """

    shape: tuple[int, int]
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    scores: np.ndarray

    def gallery_row_of(self) -> np.ndarray:
        """[N] int64 gallery row of every query, -1 for those without a partner."""
        rows = np.full(self.shape[0], -1, dtype=np.int64)
        rows[self.query_rows] = self.gallery_rows
        return rows


def assign(scores: ScoreSource, *, max_bytes: int = 4 << 30) -> Match:
    """The one-to-one assignment with the highest sum of scores; with N != M the longer side keeps items unmatched.

    Hungarian method in the variant of Jonker and Volgenant (Crouse, IEEE TAES 52, 2016) on the dense matrix: time
    O(min(N, M)^2 max(N, M)), memory 8 N M bytes in fp64. Equal optima are decided by the order of the rows.

    Args:
        scores: [N, M], higher is better.
        max_bytes: Largest cost matrix that is allowed; the default fits 23 000 x 23 000.

    Raises:
        MatchTooLargeError: Naming the bytes that it would take.
    """
    n, m = scores.shape
    if 8 * n * m > max_bytes:
        raise MatchTooLargeError(
            f"matching {n} queries with {m} items takes a matrix of {8 * n * m} bytes; max_bytes allows {max_bytes}. "
            "Match groups on their own, or raise max_bytes where the memory is there."
        )
    # costs with the shorter side as rows, so that scipy neither negates nor transposes: it would copy the matrix
    costs = np.empty((min(n, m), max(n, m)))
    height, width = MATCH_TILE
    for top in range(0, n, height):
        rows = slice(top, min(top + height, n))
        for left in range(0, m, width):
            columns = slice(left, min(left + width, m))
            tile = scores.tile(rows, columns).scores.neg_().cpu().numpy()
            if n <= m:
                costs[rows, columns] = tile
            else:
                costs[columns, rows] = tile.T
    if not np.isfinite(costs.sum()):
        raise ValueError("a score is not finite: rank the scores to learn which; nothing can be matched.")
    short, long = linear_sum_assignment(costs)
    query, gallery = (short, long) if n <= m else (long, short)
    order = np.argsort(query)
    return _match(scores, query[order], gallery[order])


def best_of_each(scores: ScoreSource) -> Match:
    """Every query with its best item, whoever else took it: what matching without the one-to-one rule gives."""
    n, m = scores.shape
    ranking = rank(scores, None, 1)
    return _match(scores, np.arange(n if m else 0), ranking.top_rows[:, 0] if m else np.empty(0, np.int64))


def _match(scores: ScoreSource, query: np.ndarray, gallery: np.ndarray) -> Match:
    rows = (torch.from_numpy(side.astype(np.int64)).to(scores.device) for side in (query, gallery))
    values = scores.pairs(*rows).float().cpu().numpy()
    return Match(scores.shape, query.astype(np.int64), gallery.astype(np.int64), values)
