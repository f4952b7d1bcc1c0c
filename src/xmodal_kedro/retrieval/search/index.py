"""What every index promises - search, names, an origin, a sealed directory - and the checks that all kinds share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xmodal_kedro.data.manifest import fingerprint, read_manifest, seal
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.scores.matrix import as_matrix

KIND = "index"  # in manifests


class Found(NamedTuple):
    """The best of a gallery for each query.

    k is what was asked for, or less where the gallery (or what is allowed of it) is smaller.

    Attributes:
        scores: [Q, k] fp32 inner products, best first.
        rows: [Q, k] int64 rows of the gallery. An approximate index that finds fewer than k fills up with row -1 and
            score minus infinity.
    """

    scores: np.ndarray
    rows: np.ndarray


class Index(Protocol):
    """A gallery of N vectors of D dimensions that can be searched."""

    ids: np.ndarray
    """[N] str objects, the names of the rows."""
    origin: dict[str, Any]
    """What made the vectors, as `origin_of` gives it."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def search(self, queries: Tensor | np.ndarray, k: int = 10, *, allowed: np.ndarray | None = None) -> Found:
        """The k rows with the largest inner products.

        Args:
            queries: [Q, D]; of length 1, where scores are to be cosines.
            k: How many.
            allowed: [N] bool; rows that may be found. None allows all.

        Raises:
            ValueError: Queries have another dimension or are not finite (the row is named), k is negative, or `allowed`
                is no mask of the gallery.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write the index into a new or empty directory and seal it; `open_index` reads it."""
        ...


def origin_of(embeddings: Embeddings) -> dict[str, Any]:
    """What an index remembers of the embeddings it was made of."""
    meta = embeddings.meta
    return {
        "member": meta["member"],
        "side": meta["side"],
        **meta["fingerprints"],
        "ids": fingerprint([str(name) for name in embeddings.ids]),
    }


def check_made_of(origin: dict[str, Any], embeddings: Embeddings) -> None:
    """Refuse an index beside embeddings that it was not made of.

    Raises:
        OtherOriginError: Naming what differs, on both sides.
    """
    expected = origin_of(embeddings)
    for what in expected | origin:
        if origin.get(what) != expected.get(what):
            raise OtherOriginError(
                f"the index was made of embeddings with {what} {origin.get(what)}, {embeddings} have {what} "
                f"{expected.get(what)}: load the versions that belong together, or build the index again."
            )


def as_queries(queries: Tensor | np.ndarray, dimension: int, device: torch.device | str = "cpu") -> Tensor:
    """Queries [Q, D] as fp32 on the device; ValueError where they are not finite or do not fit the gallery."""
    values = as_matrix(queries, "queries", device)
    if values.shape[1] != dimension:
        raise ValueError(
            f"queries have {values.shape[1]} dimensions, the gallery has {dimension}: both must come from the same "
            "member."
        )
    check_finite(values, "queries")
    return values


def check_finite(vectors: Tensor, name: str, *, start: int = 0, ids: Sequence[str] | np.ndarray | None = None) -> None:
    """ValueError for a vector that is not finite; its row, counted from `start`, and its id are named."""
    finite = torch.isfinite(torch.linalg.vector_norm(vectors, dim=1))
    if not bool(finite.all()):
        row = start + int((~finite).nonzero()[0])
        called = "" if ids is None else f" ('{ids[row]}')"
        raise ValueError(f"row {row} of the {name}{called} is not finite (NaN, infinite, or too long for fp32).")


def check_gallery(matrix: Tensor, ids: Sequence[str] | np.ndarray | None) -> np.ndarray:
    """Names [N] of the rows of a gallery [N, D], by default their numbers; ValueError if they do not fit."""
    names = np.asarray([str(row) for row in range(len(matrix))] if ids is None else ids, dtype=object)
    if names.shape != (len(matrix),):
        raise ValueError(f"a gallery needs one id per row: {len(matrix)} rows, ids of shape {names.shape}.")
    return names


def allowed_rows(allowed: np.ndarray | None, n: int) -> np.ndarray | None:
    """Rows [A] int64 of a mask [n]; none for no mask."""
    if allowed is None:
        return None
    mask = np.asarray(allowed)
    if mask.shape != (n,) or mask.dtype != np.bool_:
        raise ValueError(
            f"allowed must be a mask of the gallery, {n} times true or false; it has shape {mask.shape} and type "
            f"{mask.dtype}."
        )
    return np.flatnonzero(mask)


def check_k(k: int) -> None:
    """ValueError for a number of results that makes no sense."""
    if k < 0:
        raise ValueError(f"k must not be negative; it is {k}.")


def prepare(directory: Path) -> Path:
    """A directory that may be written into; FileExistsError if it holds something."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: an index is never overwritten, choose a new one.")
    return directory


def finish(directory: Path, index: Index, kind: str, settings: dict[str, Any]) -> None:
    """Write names and meta beside an index's own files, then seal the directory."""
    pd.DataFrame({"id": pd.array(index.ids, dtype="str")}).to_parquet(directory / "ids.parquet", index=False)
    meta = {"index": kind, "origin": index.origin, "settings": settings, "shape": [len(index), index.dimension]}
    (directory / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False, sort_keys=True))
    seal(directory, KIND, **{what: str(value) for what, value in index.origin.items()})


def read_meta(directory: Path) -> dict[str, Any]:
    """The meta of a sealed index; BrokenArtifactError if it was never finished or a file is cut short."""
    read_manifest(directory, KIND)
    meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
    return meta


def read_ids(directory: Path) -> np.ndarray:
    """Names [N] of the rows."""
    return pd.read_parquet(directory / "ids.parquet")["id"].to_numpy(dtype=object)
