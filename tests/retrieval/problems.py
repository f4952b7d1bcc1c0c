"""Small problems that tests of whole registries draw, and the engine with all its sizes made small.

A problem has vectors, copies of them, and many-to-many truth; `values` are all exact scores of a source.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from scipy import sparse

import xmodal_kedro.retrieval as engine
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource

D = 6
same_cases = settings(derandomize=True, deadline=None, max_examples=12, database=None)
sides = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 11))  # seed, N, M


class Problem:
    """Queries and gallery of unit vectors, some of them copies of others, with many-to-many truth."""

    def __init__(self, seed: int, n: int, m: int, *, copies: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.queries, self.gallery, self.bank = (unit(rng.standard_normal((rows, D))) for rows in (n, m, 5))
        if copies:
            self.queries, self.gallery = (side[rng.integers(0, len(side), len(side))] for side in self.sides)
        self.truth = sparse.csr_array(rng.random((n, m)) < 0.3)
        self.rng = rng

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        return self.queries, self.gallery

    def source(self, name: str = "none", *, backward: bool = False) -> ScoreSource:
        """Scores of the queries over the gallery, or of the gallery over the queries, normalised by their own rows."""
        queries, gallery = reversed(self.sides) if backward else self.sides
        bank = EmbeddingScores(self.bank, gallery)
        return normalised(EmbeddingScores(queries, gallery), name, Setting(0.1, neighbours=2, iterations=3, bank=bank))

    def shuffled(self) -> tuple[Problem, np.ndarray, np.ndarray]:
        rows, columns = (self.rng.permutation(len(side)) for side in self.sides)
        other = self.taken(rows, columns)
        other.bank = self.bank[self.rng.permutation(len(self.bank))]
        return other, rows, columns

    def taken(self, rows: np.ndarray, columns: np.ndarray) -> Problem:
        other = copy(self)
        other.queries, other.gallery = self.queries[rows], self.gallery[columns]
        other.truth = sparse.csr_array(self.truth.toarray()[rows][:, columns])
        return other


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def values(source: ScoreSource) -> np.ndarray:
    """All exact scores, [N, M] fp64."""
    n, m = source.shape
    return source.pairs(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)).view(n, m).numpy()


def dense(ranking) -> np.ndarray:
    """Ranks of the relevant items at their places [N, M], 0 elsewhere."""
    truth = ranking.relevance
    found = sparse.csr_array((ranking.relevant_ranks, truth.indices, truth.indptr), shape=truth.shape)
    return found.toarray()


def ranks_of(source: ScoreSource, truth, **options) -> np.ndarray:
    return dense(rank(source, truth, 0, **options))


def embeddings(side: str, vectors: np.ndarray, name: str) -> Embeddings:
    ids = np.array([f"{name}-{row}" for row in range(len(vectors))], dtype=object)
    return Embeddings(ids, vectors, {"member": "tiny", "side": side, "fingerprints": {"weights": "w"}})


def sizes(tile: tuple[int, int]) -> dict[str, dict[str, object]]:
    """Every constant of the engine that says how much is worked on at once, by module, for tiles of this shape."""
    h, w = tile
    shape = {"tile_shape": lambda device: tile}
    match = {"WIDTH": 8, "height": lambda device: h}  # a power of two, at least the height
    return {
        "tiles": shape,
        "rank": shape,
        "one_way": shape,
        "top": {"BLOCK": w},
        "counts": {"AT_ONCE": h * w},
        "bootstrap": {"AT_ONCE": h * w},
        "embeddings": {"CHUNK": h},
        "scores.embedding": {"BLOCK": h, "MANY": h * w},
        "scores.product": {"STRIP": w},
        "normalise.statistics": {"CPU_TILE": tile, "GPU_TILE": tile, "CHUNK": h, "STRIP": w},
        "normalise.sinkhorn": {"CPU_BLOCK": h * w, "GPU_BLOCK": h * w, "WIDTH": w},
        "normalise.ranked": {"TOGETHER": h},
        "match.tiles": match,
        "match.check": match | {"AT_ONCE": h},
        "match.candidates": match | {"CHUNK": 8 * h, "BLOCK": w},  # a multiple of height and width of a tile
        "match.assignment": {"AT_ONCE": h * w},
        "search.exact": {"CHUNK": h, "FOLD": w},
        "search.filter": {"BLOCK": 2, "FOLD": w, "PAGE": h},  # a power of two
        "search.approximate": {"PAGE": h},
        "fuse.trials": {"PAIRS_AT_ONCE": h * w, "BLOCK": h * w, "TOGETHER": h},
        "rerank.k_reciprocal": {"BLOCK": h},
        "rerank.itm": {"MEMORY": h * w},
    }


@contextmanager
def other_tiles(tile: tuple[int, int]) -> Iterator[None]:
    """Every one of these constants is small."""
    with pytest.MonkeyPatch.context() as patch:
        for module, constants in sizes(tile).items():
            for name, value in constants.items():
                patch.setattr(importlib.import_module(f"{engine.__name__}.{module}"), name, value)
        yield
