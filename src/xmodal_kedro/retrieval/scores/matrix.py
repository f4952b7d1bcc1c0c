"""Scores that lie in memory as a matrix already, and the check that what claims to be a matrix is one."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.source import Tile


class MatrixScores:
    """Scores that exist as a matrix already: small sets, cross-encoders, tests."""

    def __init__(self, matrix: Tensor | np.ndarray, device: torch.device | str = "cpu") -> None:
        """Take the matrix [N, M]; it is turned into fp32, and must be finite (ValueError names the entry)."""
        self.matrix = as_matrix(matrix, "scores", device)
        if not bool(torch.isfinite(self.matrix).all()):
            row, column = (int(i) for i in (~torch.isfinite(self.matrix)).nonzero()[0])
            raise ValueError(f"the score of query row {row} and gallery row {column} is not a finite number.")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the matrix lies."""
        return self.matrix.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """A copy of a block of the matrix, without error."""
        return Tile(self.matrix[queries, gallery].clone(), torch.zeros(1, 1, device=self.device))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Entries of the matrix."""
        return self.matrix[queries, gallery].double()


def as_matrix(values: Tensor | np.ndarray, name: str, device: torch.device | str) -> Tensor:
    """Values [rows, columns] as fp32 on the device; ValueError if they are no matrix of real numbers.

    What is fp32 already is not copied (so a memory-mapped array is not read here), but where torch cannot look at it:
    at steps backwards and at foreign byte order. Nobody may write into the result.
    """
    values = values.detach() if isinstance(values, Tensor) else _looked_at(np.asarray(values), name)
    if values.is_complex():
        raise ValueError(f"{name} must be real numbers; they are complex: take the part that is meant, as .real.")
    values = values.to(device=device, dtype=torch.float32)
    if values.ndim != 2:
        raise ValueError(f"{name} must be a matrix [rows, columns]; its shape is {tuple(values.shape)}.")
    return values


def _looked_at(array: np.ndarray, name: str) -> Tensor:
    """The array's own memory as a tensor, or a copy in fp32 where torch has no such tensors."""
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be numbers; their type is {array.dtype}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError):
            return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
