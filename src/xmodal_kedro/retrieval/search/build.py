"""Indices by kind: build one of embeddings, open one that was saved, and measure what it misses."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.bootstrap import interval
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.scores import EmbeddingScores
from xmodal_kedro.retrieval.search.approximate import FaissIndex
from xmodal_kedro.retrieval.search.exact import ExactIndex
from xmodal_kedro.retrieval.search.index import Index, as_queries, check_made_of, read_meta

ASKED = 1000  # texts that the recall of an index is measured with


class Recall(NamedTuple):
    """Share of the true best k that an index finds.

    Attributes:
        value: Mean over queries.
        low: End of its 95 % bootstrap interval over queries.
        high: Other end.
        queries: How many were asked.
        k: Length of the results.
    """

    value: float
    low: float
    high: float
    queries: int
    k: int


def build_index(embeddings: Embeddings, config: IndexConfig | None = None) -> Index:
    """Index embeddings; by default exactly.

    Raises:
        ValueError: A vector is not finite; its row is named.
        ModuleNotFoundError: The kind needs faiss, which is not installed.
    """
    config = config or IndexConfig()
    return ExactIndex.of(embeddings) if config.kind == "exact" else FaissIndex.of(embeddings, config)


def open_index(directory: Path, *, mmap: bool = True, embeddings: Embeddings | None = None) -> Index:
    """Open an index of any kind.

    Args:
        directory: As an index's `save` left it.
        mmap: Read vectors from disk when they are needed, instead of all of them now.
        embeddings: Those that the index is used with; none checks nothing.

    Raises:
        OtherOriginError: The index was made of other embeddings; both origins are named.
        BrokenArtifactError: There is no manifest, or a file is missing or cut short.
        ModuleNotFoundError: The kind needs faiss, which is not installed.
    """
    meta = read_meta(directory)
    if embeddings is not None:
        check_made_of(meta["origin"], embeddings)
    return (ExactIndex if meta["index"] == "exact" else FaissIndex).open(directory, mmap=mmap)


def measure_recall(
    index: Index, exact: ExactIndex, queries: Tensor | np.ndarray, k: int = 10, *, resamples: int = 1000, seed: int = 0
) -> Recall:
    """Compare what an index finds with the true best k; a row that scores as much as the true place k is one of them.

    Args:
        index: To be measured.
        exact: Of the same gallery.
        queries: [Q, D].
        k: Length of the results; it is cut to N.
        resamples: Behind the interval.
        seed: Of the resampling.

    Raises:
        ValueError: The two indices do not hold the same rows, or there are no queries or no rows to find.
    """
    if not np.array_equal(index.ids, exact.ids):
        raise ValueError(
            f"recall needs two indices of the same gallery: one has {len(index.ids)} ids, the other {len(exact.ids)}, "
            "and they differ."
        )
    asked = as_queries(queries, exact.dimension, exact.matrix.device)
    k = min(k, len(exact))
    if len(asked) == 0 or k == 0:
        raise ValueError(f"recall needs queries and rows: {len(asked)} queries, k = {k}.")
    found = index.search(asked, k).rows
    reached = exact.search(asked, k).scores[:, -1]  # [Q]
    query, place = np.nonzero(found >= 0)
    distinct, position = torch.from_numpy(found[query, place]).unique(return_inverse=True)
    device = asked.device
    scores = EmbeddingScores(asked, exact.matrix[distinct.to(device)]).pairs(
        torch.from_numpy(query).to(device), position.to(device)
    )
    right = np.bincount(query, weights=scores.float().cpu().numpy() >= reached[query], minlength=len(asked)) / k
    low, high = interval(right, resamples=resamples, seed=seed)
    return Recall(float(right.mean()), float(low), float(high), len(asked), k)


def recall_table(index: Index, gallery: Embeddings, queries: Embeddings, config: IndexConfig) -> pd.DataFrame:
    """How an index of `gallery` answers up to 1000 `queries`, evenly taken: `metric`, `value`, `low`, `high`, `n`.

    The rows of the index, and for approximate kinds the recall against exact search.
    """
    rows: list[tuple[str, float, float, float, int]] = [("rows", len(index), np.nan, np.nan, len(index))]
    if config.kind != "exact" and len(queries) and len(gallery):
        asked = queries.matrix[:: -(-len(queries) // ASKED)]
        recall = measure_recall(index, ExactIndex.of(gallery), asked, config.k, seed=config.seed)
        rows.append((f"recall_at_{recall.k}", recall.value, recall.low, recall.high, recall.queries))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"])
