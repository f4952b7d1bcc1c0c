"""The union of the members' best items of every query: what any fusion may bring to the top, scored by every member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource


@dataclass(frozen=True, eq=False)
class Candidates:
    """E candidates of N queries, of S members.

    Attributes:
        queries: [E] int64, ascending.
        items: [E] int64, gallery rows, ascending and distinct within a query.
        starts: [N + 1] int64: those of query i are starts[i] to starts[i + 1].
        scores: [S, E] fp64, exact.
        ranks: [S, E] int64: place on the member's list, from 1; equal scores share the best place. `size` + 1 where an
            item is not on the list.
        best: [S, N] fp64, each member's highest score of the query.
        last: [S, N] fp64, the last score on each list: no item outside of it has a higher one.
        size: Length of the lists.
        complete: Whether the lists hold the whole gallery.
    """

    queries: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    best: np.ndarray
    last: np.ndarray
    size: int
    complete: bool


def find_candidates(sources: Sequence[ScoreSource], size: int) -> Candidates:
    """Each member's best `size` items of every query, and their scores by all members.

    Args:
        sources: S sources [N, M]; M at least 1.
        size: Of each list, at least 1; it is cut to M.
    """
    n, m = sources[0].shape
    size = min(size, m)
    rows = np.repeat(np.arange(n), size)
    keys = [rows * m + rank(source, None, size).top_rows.ravel() for source in sources]
    union = np.unique(np.concatenate(keys))
    queries, items = union // m, union % m
    scores = np.stack([exact_scores(source, queries, items) for source in sources])
    ranks = np.full(scores.shape, size + 1)
    listed = np.empty((len(sources), n, size))  # the scores of each list
    for number, key in enumerate(keys):
        where = np.searchsorted(union, key)
        listed[number] = scores[number, where].reshape(n, size)
        place = np.tile(np.arange(1, size + 1), (n, 1))
        place[:, 1:][listed[number, :, 1:] == listed[number, :, :-1]] = 0
        ranks[number, where] = np.maximum.accumulate(place, axis=1).ravel()
    return Candidates(
        queries=queries,
        items=items,
        starts=np.searchsorted(queries, np.arange(n + 1)),
        scores=scores,
        ranks=ranks,
        best=listed[:, :, 0],
        last=listed[:, :, -1],
        size=size,
        complete=size == m,
    )


def exact_scores(source: ScoreSource, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Exact scores [K] fp64 of chosen pairs."""
    device = source.device
    return source.pairs(torch.from_numpy(queries).to(device), torch.from_numpy(gallery).to(device)).cpu().numpy()
