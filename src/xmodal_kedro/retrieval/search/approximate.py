"""Indices of faiss behind the interface of the exact one: flat, inverted lists and graphs, without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.scores.matrix import as_matrix
from xmodal_kedro.retrieval.search.index import (
    Found,
    allowed_rows,
    as_queries,
    check_finite,
    check_gallery,
    check_k,
    finish,
    origin_of,
    prepare,
    read_ids,
    read_meta,
)

PAGE = 8192  # gallery rows at once
SPARSEST = 39  # rows per list, below which faiss finds too few to learn a centre from


class FaissIndex:
    """A gallery that faiss searches by inner products; `ivf` and `hnsw` may miss some of the best rows.

    Scores are those of faiss in fp32, and rows with the same score come in no defined order. Threads are those of
    OpenMP (`OMP_NUM_THREADS`, `faiss.omp_set_num_threads`); a graph that several threads build is not the same twice.
    """

    def __init__(
        self,
        matrix: Tensor | np.ndarray,
        ids: Sequence[str] | np.ndarray | None = None,
        config: IndexConfig | None = None,
        *,
        origin: dict[str, Any] | None = None,
    ) -> None:
        """Build an index.

        Args:
            matrix: [N, D]; read in pages, so that a memory-mapped array is not copied but into the index.
            ids: [N] names of the rows, by default their numbers.
            config: Kind and settings; by default `flat`.
            origin: What made the vectors (see `origin_of`).

        Raises:
            ValueError: Ids and rows do not fit, or a vector is not finite (its row and id are named), the kind is
                `exact`, or there are too few rows for so many lists.
            ModuleNotFoundError: faiss is not installed; the extra that brings it is named.
        """
        gallery = as_matrix(matrix, "gallery", "cpu")
        self.ids = check_gallery(gallery, ids)
        self.origin = dict(origin or {})
        self.config = config or IndexConfig(kind="flat")
        self.index = _empty(len(gallery), gallery.shape[1], self.config)
        for start in range(0, len(gallery), PAGE):
            page = gallery[start : start + PAGE]
            check_finite(page, "gallery", start=start, ids=None if ids is None else self.ids)
        if len(gallery) and not self.index.is_trained:
            self.index.cp.seed = self.config.seed
            self.index.train(_sample(gallery, self.config.sample * self.index.nlist, self.config.seed))
        for start in range(0, len(gallery), PAGE):
            self.index.add(np.ascontiguousarray(gallery[start : start + PAGE].numpy()))

    @classmethod
    def of(cls, embeddings: Embeddings, config: IndexConfig | None = None) -> FaissIndex:
        """Index embeddings."""
        return cls(embeddings.matrix, embeddings.ids, config, origin=origin_of(embeddings))

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.index.d)

    def __len__(self) -> int:
        """N."""
        return int(self.index.ntotal)

    def search(self, queries: Tensor | np.ndarray, k: int = 10, *, allowed: np.ndarray | None = None) -> Found:
        """The k rows with the largest inner products, as far as this kind of index finds them.

        Arguments and errors as in `Index.search`.
        """
        check_k(k)
        asked = np.ascontiguousarray(as_queries(queries, self.dimension).numpy())
        rows = allowed_rows(allowed, len(self))
        k = min(k, len(self) if rows is None else len(rows))
        if k == 0 or len(asked) == 0:
            return Found(np.empty((len(asked), k), np.float32), np.empty((len(asked), k), np.int64))
        faiss = load_faiss()
        selector = None
        if allowed is not None:
            bits = np.packbits(np.asarray(allowed), bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        if self.config.kind == "ivf":
            settings = faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nprobe)
        elif self.config.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(sel=selector, efSearch=max(self.config.breadth, k))
        else:
            settings = faiss.SearchParameters(sel=selector)
        scores, found = self.index.search(asked, k, params=settings)
        scores[found < 0] = -np.inf
        return Found(scores, found)

    def save(self, directory: Path) -> None:
        """Write faiss's file, ids and origin into a new or empty directory and seal it.

        Raises:
            FileExistsError: The directory holds something.
        """
        load_faiss().write_index(self.index, str(prepare(directory) / "index.faiss"))
        finish(directory, self, self.config.kind, self.config.model_dump())

    @classmethod
    def open(cls, directory: Path, *, mmap: bool = True) -> FaissIndex:
        """Open what `save` wrote; `mmap` reads vectors from disk when they are needed.

        Raises:
            BrokenArtifactError: There is no manifest, or a file is missing or cut short.
            ModuleNotFoundError: faiss is not installed; the extra that brings it is named.
        """
        meta = read_meta(directory)
        faiss = load_faiss()
        index = cls.__new__(cls)
        flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
        index.index = faiss.read_index(str(directory / "index.faiss"), flags)
        index.ids, index.origin = read_ids(directory), meta["origin"]
        index.config = IndexConfig.model_validate(meta["settings"])
        return index


def load_faiss() -> ModuleType:
    """The library; ModuleNotFoundError names the extra."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "indices of the kinds flat, ivf and hnsw need faiss: install xmodal-kedro[search], or use the kind exact."
        ) from error
    return faiss


def _empty(n: int, d: int, config: IndexConfig) -> Any:
    """An index of faiss without rows, for n of them."""
    if config.kind == "exact":
        raise ValueError(
            "FaissIndex builds the kinds flat, ivf and hnsw: for the kind exact use ExactIndex or build_index, for "
            "faiss's own search of all rows the kind flat."
        )
    faiss = load_faiss()
    if config.kind == "ivf":
        most = max(1, n // SPARSEST)
        if n and config.lists is not None and config.lists > most:
            raise ValueError(
                f"index.lists is {config.lists}, but {n} rows are enough for {most} lists at most ({SPARSEST} rows to "
                f"learn each from): set lists to {most} or less, or leave it out."
            )
        lists = config.lists or min(max(1, round(4 * n**0.5)), most)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(config.probes or -(-lists // 8), lists)
        return index
    if config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(d, config.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.construction
        return index
    return faiss.IndexFlatIP(d)


def _sample(gallery: Tensor, size: int, seed: int) -> np.ndarray:
    """Rows [size, D] to learn from, drawn without repetition, in their order."""
    rows = np.random.default_rng(seed).permutation(len(gallery))[:size]
    return np.ascontiguousarray(gallery[torch.from_numpy(np.sort(rows))].numpy())
