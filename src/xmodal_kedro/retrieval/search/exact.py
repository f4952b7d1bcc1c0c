"""The exact best k of a gallery: products of bf16 sort out what cannot be among them, fp64 decides the rest.

A search streams a copy of the gallery in bf16, half the bytes of fp32, and products of bf16 are several times as fast.
Each coarse score comes with a bound on its error, so only rows that may belong to the best k are scored exactly: the
order is that of fp64 products, equal scores in the order of the rows. The copy holds the rows minus their mean. That
shifts all scores of a query by the same amount, and where vectors lie close together (as those of most encoders do) it
makes them short, and their errors small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores
from xmodal_kedro.retrieval.scores.matrix import as_matrix
from xmodal_kedro.retrieval.scores.precision import fast_bf16
from xmodal_kedro.retrieval.search.filter import FOLD, Coarse, Filter, halved, whole
from xmodal_kedro.retrieval.search.index import (
    Found,
    allowed_rows,
    as_queries,
    check_gallery,
    check_k,
    finish,
    origin_of,
    prepare,
    read_ids,
    read_meta,
)

CHUNK = 256  # queries at once


class ExactIndex:
    """A gallery that is searched by inner products, exactly: the order never depends on filter, tiles or threads."""

    def __init__(
        self,
        matrix: Tensor | np.ndarray,
        ids: Sequence[str] | np.ndarray | None = None,
        *,
        origin: dict[str, Any] | None = None,
        half: bool | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take a gallery and read it once or twice.

        Args:
            matrix: [N, D], turned into fp32; a memory-mapped fp32 array is not copied.
            ids: [N] names of the rows, by default their numbers.
            origin: What made the vectors (see `origin_of`).
            half: Keep a copy in bf16, half the bytes, that searches stream instead; by default where that is fast.
            device: Where searches are computed.

        Raises:
            ValueError: Ids and rows do not fit, or a vector is not finite (its row and id are named).
        """
        self.matrix = as_matrix(matrix, "gallery", device)
        self.ids = check_gallery(self.matrix, ids)
        self.origin = dict(origin or {})
        half = fast_bf16(self.matrix.device) if half is None else half
        self.filter = (halved if half else whole)(self.matrix, None if ids is None else self.ids)

    @classmethod
    def of(cls, embeddings: Embeddings, **settings: Any) -> ExactIndex:
        """Index embeddings; settings as in the constructor."""
        return cls(embeddings.matrix, embeddings.ids, origin=origin_of(embeddings), **settings)

    @property
    def dimension(self) -> int:
        """D."""
        return self.matrix.shape[1]

    def __len__(self) -> int:
        """N."""
        return len(self.matrix)

    def search(self, queries: Tensor | np.ndarray, k: int = 10, *, allowed: np.ndarray | None = None) -> Found:
        """The k rows with the largest inner products, in the order of their exact scores, then of the rows.

        Arguments and errors as in `Index.search`.
        """
        check_k(k)
        asked = as_queries(queries, self.dimension, self.matrix.device)
        chosen = allowed_rows(allowed, len(self))
        rows = None if chosen is None else torch.from_numpy(chosen).to(self.matrix.device)
        k = min(k, len(self) if rows is None else len(rows))
        scores = np.empty((len(asked), k), np.float32)
        found = np.empty((len(asked), k), np.int64)
        for start in range(0, len(asked) if k else 0, CHUNK):
            part = slice(start, start + CHUNK)
            scores[part], found[part] = self._search(asked[part], k, rows)
        return Found(scores, found)

    def save(self, directory: Path) -> None:
        """Write gallery, filter, ids and origin into a new or empty directory and seal it.

        Raises:
            FileExistsError: The directory holds something.
        """
        prepare(directory)
        np.save(directory / "matrix.npy", self.matrix.cpu().numpy(), allow_pickle=False)
        bounds = torch.stack([self.filter.length, self.filter.error])
        half = self.filter.vectors.dtype == torch.bfloat16
        if half:
            np.save(directory / "filter.npy", self.filter.vectors.view(torch.int16).cpu().numpy(), allow_pickle=False)
        np.save(directory / "bounds.npy", bounds.cpu().numpy(), allow_pickle=False)
        finish(directory, self, "exact", {"half": half})

    @classmethod
    def open(cls, directory: Path, *, mmap: bool = True, device: torch.device | str = "cpu") -> ExactIndex:
        """Open what `save` wrote; `mmap` reads vectors from disk when they are needed, and keeps none.

        Raises:
            BrokenArtifactError: There is no manifest, or a file is missing or cut short.
        """
        meta = read_meta(directory)
        index = cls.__new__(cls)
        # copy-on-write: torch wants writable memory, and the file must stay as it is
        mode: Literal["c"] | None = "c" if mmap else None
        index.matrix = torch.from_numpy(np.load(directory / "matrix.npy", mmap_mode=mode)).to(device)
        index.ids, index.origin = read_ids(directory), meta["origin"]
        half = meta["settings"]["half"]
        if half and not fast_bf16(index.matrix.device):  # saved on another kind of machine
            index.filter = whole(index.matrix)
            return index
        stored = torch.from_numpy(np.load(directory / "filter.npy", mmap_mode=mode)) if half else None
        vectors = index.matrix if stored is None else stored.view(torch.bfloat16).to(device)
        length, error = torch.from_numpy(np.load(directory / "bounds.npy")).to(device)
        index.filter = Filter(vectors, length, error)
        return index

    def _search(self, queries: Tensor, k: int, rows: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """The best k of `rows` (none: of all) for a chunk of queries [Q, D]; k is at most their number."""
        query, item, crowded = self._candidates(queries, k, rows)
        found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        scores = torch.empty((len(queries), k), device=queries.device)
        some = ~crowded
        if len(query):
            distinct, position = item.unique(return_inverse=True)
            exact = EmbeddingScores(queries, self.matrix[distinct]).pairs(query, position)
            scores[some], found[some] = _best_of_each(query, item, exact, k, some)
        if bool(crowded.any()):  # scores too close together for the filter: as a ranking, which knows how
            gallery = self.matrix if rows is None else self.matrix[rows]
            ranking = rank(EmbeddingScores(queries[crowded], gallery), k=k)
            top = torch.from_numpy(ranking.top_rows).to(found.device)
            found[crowded] = top if rows is None else rows[top]
            scores[crowded] = torch.from_numpy(ranking.top_scores).to(scores.device)
        return scores.cpu().numpy(), found.cpu().numpy()

    def _candidates(self, queries: Tensor, k: int, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (query, gallery row) that hold the best k of every query, and queries [Q] with too many of them.

        Of every block of columns the maximum is taken. The block that is k-th from the top proves that k rows score at
        least its maximum less the noise; what could not reach that is out. Pairs ascend by query, then by row.
        """
        n, n_queries = len(self) if rows is None else len(rows), len(queries)
        coarse = Coarse(queries, self.filter)
        proven = queries.new_full((n_queries, k), -torch.inf)  # exact scores that k distinct rows reach
        crowded = coarse.too_long()
        seen = torch.zeros(n_queries, dtype=torch.int64, device=queries.device)
        limit = 64 * k + 1024  # candidates per query, beyond which a ranking is no slower
        pieces = []
        for part in _strips(n, coarse.width):
            maxima, noise = coarse.see(part if rows is None else rows[part], k)
            folded = maxima.view(n_queries, FOLD, -1).amax(1) if maxima.shape[1] >= 4 * FOLD * k else maxima
            sure = folded.topk(min(k, folded.shape[1]), dim=1).values
            sure = sure - sure.abs() * coarse.rounding - noise
            proven = torch.cat([proven, sure], 1).topk(k, dim=1).values
            cut = proven[:, -1:] - noise  # a coarse score below this is one of an exact score below place k
            hit = maxima >= cut - cut.abs() * coarse.rounding
            crowded |= hit.sum(1) > limit // 4
            hit &= ~crowded[:, None]
            query, item, scores = coarse.open(*hit.nonzero(as_tuple=True))
            most = scores + scores.abs() * coarse.rounding + noise[query, 0]
            kept = (item < part.stop - part.start) & (most >= proven[query, -1])  # the last tile is filled up
            query, item, most = query[kept], item[kept], most[kept]
            pieces.append((query, item + part.start, most))
            seen += torch.bincount(query, minlength=n_queries)
            crowded |= seen > 8 * limit
        query, item, most = (torch.cat(part) for part in zip(*pieces, strict=True))
        kept = (most >= proven[query, -1]) & ~crowded[query]
        query, item = query[kept], item[kept]
        crowded |= torch.bincount(query, minlength=n_queries) > limit
        kept = ~crowded[query]
        item = item[kept] if rows is None else rows[item[kept]]
        key = (query[kept] * len(self) + item).sort().values
        return key // len(self), key % len(self), crowded


def _strips(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _best_of_each(query: Tensor, item: Tensor, exact: Tensor, k: int, some: Tensor) -> tuple[Tensor, Tensor]:
    """Best k of the candidates [C] (ascending by query and row) of each query that is marked in `some` [Q]."""
    counts = torch.bincount(query, minlength=len(some))
    slot = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    table = exact.new_full((len(some), int(counts.max())), -torch.inf)
    table[query, slot] = exact
    rows = torch.zeros_like(table, dtype=torch.int64)
    rows[query, slot] = item
    values, order = table[some].sort(dim=1, descending=True, stable=True)
    return values[:, :k].float(), rows[some].gather(1, order)[:, :k]
