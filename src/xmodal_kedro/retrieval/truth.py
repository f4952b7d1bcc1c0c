"""The rank of every relevant item, counted tile by tile from exact scores.

The places of the relevant items of a query among themselves are known beforehand; what is counted is how many of the
others reach each of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from xmodal_kedro.retrieval.counts import count_reaching
from xmodal_kedro.retrieval.scores import ScoreSource, Tile, Transposed, quick_pairs

Ties = Literal["pessimistic", "optimistic"]


class Truth:
    """Exact scores of the relevant items, and how many of the other items reach each of them."""

    def __init__(self, scores: ScoreSource, relevance: sparse.csr_array, exact: Tensor | None = None) -> None:
        """Take what is right in scores [N, M], canonical CSR, and its exact scores [nnz] fp64 where they are known."""
        device = scores.device
        self.scores, self.relevance = scores, relevance
        self.starts = relevance.indptr.astype(np.int64)
        self.columns = torch.from_numpy(relevance.indices.astype(np.int64)).to(device)
        sizes = torch.from_numpy(np.diff(self.starts)).to(device)
        self.rows = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        exact = scores.pairs(self.rows, self.columns) if exact is None else exact
        # ascending by score within each query; of equal scores the later gallery item comes first
        order = torch.arange(len(exact), device=device).flip(0)
        for key in (exact, self.rows):
            order = order[key[order].argsort(stable=True)]
        self.order, self.thresholds = order, exact[order]
        self.slots = torch.arange(len(order), device=device) - torch.from_numpy(self.starts[:-1]).to(device)[self.rows]
        self.ahead = sizes[self.rows] - self.slots  # place among the relevant items of the query, for `order`
        self.counts = torch.zeros(len(order), dtype=torch.int64, device=device)

    def turned(self) -> Truth:
        """The same seen from the gallery, with the same scores."""
        where = sparse.csr_array(
            (np.arange(len(self.order)), self.relevance.indices, self.relevance.indptr), shape=self.relevance.shape
        ).T.tocsr()
        exact = torch.empty_like(self.thresholds)
        exact[self.order] = self.thresholds
        relevance = sparse.csr_array((self.relevance.data[where.data], where.indices, where.indptr), shape=where.shape)
        return Truth(Transposed(self.scores), relevance, exact[torch.from_numpy(where.data).to(exact.device)])

    def of(self, queries: slice) -> slice:
        """Where the relevant items of these queries stand."""
        return slice(int(self.starts[queries.start]), int(self.starts[queries.stop]))

    def leave_out(self, tile: Tile, queries: slice, gallery: slice) -> None:
        """Overwrite the tile's relevant items, so that none of them is counted."""
        part = self.of(queries)
        rows, columns = self.rows[part], self.columns[part]
        inside = (columns >= gallery.start) & (columns < gallery.stop)
        tile.scores[rows[inside] - queries.start, columns[inside] - gallery.start] = -torch.inf

    def count(self, tile: Tile, queries: slice, gallery: slice, *, ties: bool, most: int | None) -> Tensor | None:
        """Count the tile's items that reach the relevant ones of its queries; `ties`: those that score as high, too."""
        part = self.of(queries)
        rows, slots = self.rows[part] - queries.start, self.slots[part]
        if len(rows) == 0:
            return self.counts[part].clone()
        thresholds = self.thresholds.new_full((len(tile.scores), int(slots.max()) + 1), torch.inf)
        thresholds[rows, slots] = self.thresholds[part]

        def exact(row: Tensor, column: Tensor) -> Tensor:
            return self.scores.pairs(row + queries.start, column + gallery.start)

        def quick(row: Tensor, column: Tensor) -> tuple[Tensor, float] | None:
            return quick_pairs(self.scores, row + queries.start, column + gallery.start)

        counts = count_reaching(tile, thresholds, exact, ties=ties, most=most, quick=quick)
        return None if counts is None else counts[rows, slots]

    def ranks(self) -> Tensor:
        """[nnz] int64, aligned with the relevance."""
        ranks = torch.empty_like(self.counts)
        ranks[self.order] = self.ahead + self.counts
        return ranks


def truth_of(scores: ScoreSource, relevance: sparse.sparray | sparse.spmatrix | None) -> Truth | None:
    """What is right in the scores [N, M]; none where nothing is known of it.

    Raises:
        ValueError: The shapes disagree.
    """
    return None if relevance is None else Truth(scores, _canonical(relevance, scores.shape))


def _canonical(relevance: sparse.sparray | sparse.spmatrix, shape: tuple[int, int]) -> sparse.csr_array:
    """The relevance as CSR with sorted, distinct, nonzero entries."""
    if relevance.shape != shape:
        raise ValueError(f"relevance has shape {relevance.shape}, the scores have {shape}: rows are queries in both.")
    truth = sparse.csr_array(relevance, dtype=bool, copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    return truth
