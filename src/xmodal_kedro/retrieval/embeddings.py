"""Embeddings with names and an origin: ids, a memory-mapped matrix, and fingerprints of what made them.

Scores of vectors from two different trainings look like scores and mean nothing; fingerprints make that an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.data.manifest import read_manifest, seal

UNIT = 1e-3  # how far the length of a vector may be from 1
CHUNK = 4096  # rows that are checked or compared at once


class OtherOriginError(ValueError):
    """Embeddings were made by other weights, data or transforms than those they are used with."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of images or texts of one member.

    Attributes:
        ids: [N] str objects, distinct.
        matrix: [N, D] fp32, each row of length 1.
        meta: `member`, `side` (`image` or `text`) and `fingerprints` (`weights`, `data`, `transform`), and what else
            is worth keeping.
        bank: [N] group, as a str object, of the rows that stand for queries of train where a normalisation needs such;
            None for all that is ranked. No array at all is a bank without rows.
    """

    ids: np.ndarray
    matrix: np.ndarray
    meta: dict[str, Any]
    bank: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without reading the matrix."""
        object.__setattr__(self, "ids", np.asarray(self.ids, dtype=object))
        if self.matrix.ndim != 2 or self.matrix.dtype != np.float32 or len(self.matrix) != len(self.ids):
            raise ValueError(
                f"embeddings need one fp32 row per id: {len(self.ids)} ids, a matrix of shape {self.matrix.shape} and "
                f"type {self.matrix.dtype}."
            )
        if missing := {"member", "side", "fingerprints"} - self.meta.keys():
            raise ValueError(f"the meta of embeddings lacks {', '.join(sorted(missing))}.")
        if self.meta["side"] not in ("image", "text"):
            raise ValueError(f"the side of embeddings is 'image' or 'text', not '{self.meta['side']}'.")
        if not self._index.is_unique:
            raise ValueError(f"the id '{self._index[self._index.duplicated()][0]}' occurs twice in {self}.")

    def __str__(self) -> str:
        """Name them in messages."""
        return f"the {self.meta['side']} embeddings of member '{self.meta['member']}'"

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.ids, dtype=object)

    def rows(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Row of each id, [K] int64.

        Raises:
            KeyError: An id is not there; the first few are named.
        """
        rows = self._index.get_indexer(pd.Index(ids, dtype=object)).astype(np.int64)
        if (rows < 0).any():
            missing = [str(ids[i]) for i in np.flatnonzero(rows < 0).tolist()]
            named = ", ".join(f"'{i}'" for i in missing[:5])
            raise KeyError(
                f"{len(missing)} of {len(rows)} ids are not in {self}: {named}{', ...' if len(missing) > 5 else ''}. "
                "Were they made from another version of the data? Run evaluate again."
            )
        return rows

    def take(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Vectors [K, D] of the ids, in their order."""
        return np.asarray(self.matrix[self.rows(ids)])

    def bank_rows(self, group: str) -> np.ndarray:
        """Rows [K] int64 of the bank: those of the group, or all of them where train knows no such group."""
        groups = np.full(len(self), None, dtype=object) if self.bank is None else self.bank
        own = np.flatnonzero(groups == group)
        return own if len(own) else np.flatnonzero(groups != None)  # noqa: E711 - element by element

    def save(self, directory: Path) -> None:
        """Write `matrix.npy`, `ids.parquet`, `meta.json` and, last, the manifest into a directory that is new or empty.

        Raises:
            FileExistsError: The directory holds something.
            ValueError: A vector is not finite or not of length 1; its id is named.
        """
        self.check()
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FileExistsError(f"{directory} is not empty: embeddings are never overwritten, choose a new one.")
        np.save(directory / "matrix.npy", self.matrix, allow_pickle=False)
        columns = {"id": self.ids} if self.bank is None else {"id": self.ids, "bank": self.bank}
        table = pd.DataFrame({name: pd.array(column, dtype="str") for name, column in columns.items()})
        table.to_parquet(directory / "ids.parquet", index=False)
        (directory / "meta.json").write_text(json.dumps(self.meta, indent=2, ensure_ascii=False, sort_keys=True))
        seal(directory, kind="embeddings", **self.meta["fingerprints"])

    @classmethod
    def open(cls, directory: Path) -> Embeddings:
        """Open what `save` wrote; the matrix is mapped, not read.

        Raises:
            BrokenArtifactError: There is no manifest, or a file is missing or cut short.
        """
        read_manifest(directory, "embeddings")
        # copy-on-write: torch wants writable memory, and the file must stay as it is
        matrix = np.load(directory / "matrix.npy", mmap_mode="c", allow_pickle=False)
        table = pd.read_parquet(directory / "ids.parquet").astype(object)
        bank = table["bank"].where(table["bank"].notna(), None).to_numpy(dtype=object) if "bank" in table else None
        return cls(table["id"].to_numpy(dtype=object), matrix, json.loads((directory / "meta.json").read_text()), bank)

    def check(self) -> None:
        """Read the matrix once and check that every vector is finite and of length 1 (ValueError names the id)."""
        for start in range(0, len(self), CHUNK):
            length = np.linalg.norm(self.matrix[start : start + CHUNK], axis=1)
            wrong = np.flatnonzero(~(np.abs(length - 1.0) <= UNIT))
            if len(wrong):
                name, found = self.ids[start + wrong[0]], length[wrong[0]]
                why = "" if np.isfinite(found) else ": the member's weights or that input gave NaN or infinity"
                raise ValueError(f"the vector of '{name}' in {self} has length {found:.4g} instead of 1{why}.")


def check_made_by(embeddings: Embeddings, **fingerprints: str) -> None:
    """Refuse embeddings that something else made.

    Args:
        embeddings: What is about to be used.
        **fingerprints: Expected ones, any of `weights`, `data`, `transform`.

    Raises:
        OtherOriginError: Naming both fingerprints and the member.
    """
    made_by = embeddings.meta["fingerprints"]
    for what, expected in fingerprints.items():
        if (found := made_by.get(what)) != expected:
            raise OtherOriginError(
                f"{embeddings} were made by {what} {found}, but are used with {what} {expected}: "
                "load the versions that belong together, or run evaluate again."
            )
