"""Products of fp32 by the fastest library that torch brings along: all of two sets of vectors, or chosen ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.precision import sums_in_fp32

STRIP = 512  # vectors that are rounded and multiplied at once


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [B, D] times right [G, D] transposed, [B, G] fp32.

    On CPUs with AVX512, oneDNN multiplies no slower than MKL, which torch takes by itself, and on those of AMD twice as
    fast. Both add fp32 up in an order of their own, so the bounds on their errors are the same.
    """
    if left.device.type == "cpu" and left.dtype == torch.float32 and left.numel() and right.numel() and _one_dnn():
        return torch.ops.mkldnn._linear_pointwise(left.contiguous(), right.contiguous(), None, "none", [], "")
    return left @ right.T


def rounded_product(left: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """left [B, D] bf16 times the parts [G, D1], [G, D2] ... fp32, side by side, rounded to bf16, transposed.

    Returns:
        [B, G] fp32; each was rounded to bf16. On CPUs a strip of vectors at a time is rounded, multiplied and put in
        its place before it leaves the cache.
    """
    count, dims = len(parts[0]), left.shape[1]
    width = min(count, STRIP) if left.device.type == "cpu" else count
    narrow, room = _room(left, width, dims), _room(left, len(left) * width)  # the same memory for every strip
    found = _room(left, len(left), count, dtype=torch.float32)
    for start in range(0, count, max(1, width)):
        size = min(width, count - start)
        column = 0
        for part in parts:
            narrow[:size, column : column + part.shape[1]] = part[start : start + size]
            column += part.shape[1]
        block = room[: len(left) * size].view(len(left), size)
        with sums_in_fp32(left.device):
            torch.mm(left, narrow[:size].T, out=block)
        found[:, start : start + size] = block
    return found


def _room(like: Tensor, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Memory where `like` is.

    On CPUs by numpy: what torch allocates is aligned, and does not fit where the same was freed before. In a thread,
    glibc would go on to new memory tile after tile.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape, dtype=dtype)
    numbers = np.empty(shape, dtype=np.int16 if dtype == torch.bfloat16 else np.int32)  # of the same size
    return torch.from_numpy(numbers).view(dtype)


@cache
def _one_dnn() -> bool:
    """Whether oneDNN is there, may be used, and has vectors of 512 bits."""
    able = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return bool(able and torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def chosen_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor | None:
    """left[rows[i]] times right[columns[i]], [K] fp32 for rows and columns [K] int64; none where there is no fast way.

    No vector is copied: the pairs are the places of a sparse matrix at which the full product is sampled. The sums are
    in fp32, in an order of their own.
    """
    if left.device.type != "cpu" or left.dtype != torch.float32 or not _samples():
        return None
    if len(rows) == 0 or left.shape[1] == 0:
        return left.new_zeros(len(rows))
    if _ascend(rows):
        return _sampled(left, right, rows, columns)
    if _ascend(columns):
        return _sampled(right, left, columns, rows)
    order = rows.argsort(stable=True)
    found = left.new_empty(len(rows))
    found[order] = _sampled(left, right, rows[order], columns[order])
    return found


def _ascend(numbers: Tensor) -> bool:
    return bool((numbers[1:] >= numbers[:-1]).all())


def _sampled(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`chosen_products` of ascending rows."""
    low, high = int(rows[0]), int(rows[-1]) + 1
    if len(rows) > (high - low) * len(right):  # some repeat, and a sparse matrix would not take so many
        return product(left[low:high], right)[rows - low, columns]
    starts = torch.zeros(high - low + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows - low, minlength=high - low), 0, out=starts[1:])
    shape = high - low, len(right)
    places = torch.sparse_csr_tensor(starts, columns, left.new_zeros(len(rows)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(places, left[low:high], right.T, beta=0.0).values()


@cache
def _samples() -> bool:
    """Whether torch can sample products here. Trying it uses up its remark that sparse matrices are new to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            one = torch.ones(1, 1)
            torch.sparse.sampled_addmm(one.to_sparse_csr(), one, one)
        except RuntimeError:
            return False
    return True
