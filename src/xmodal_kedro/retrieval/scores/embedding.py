"""Inner products of embeddings, in tiles with a bound on their rounding, and exactly for chosen pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.matrix import as_matrix
from xmodal_kedro.retrieval.scores.precision import (
    BF16_ROUNDING,
    HUGE,
    TINY,
    fast_bf16,
    input_rounding,
    largest,
    length_bound,
    longest,
)
from xmodal_kedro.retrieval.scores.product import chosen_products, product, rounded_product
from xmodal_kedro.retrieval.scores.recent import Recent
from xmodal_kedro.retrieval.scores.source import FP32_ROUNDING, Tile

BLOCK = 64  # vectors at once where all are looked at
FEW_TERMS = 1 << 15  # numbers that numpy adds up before torch has begun
MANY = 1 << 16  # exact scores at once; above it, it pays to look for pairs that occur twice

Array = TypeVar("Array", Tensor, np.ndarray)


class EmbeddingScores:
    """Inner products of two sets of vectors: cosines, where the vectors have unit length."""

    def __init__(
        self,
        queries: Tensor | np.ndarray,
        gallery: Tensor | np.ndarray,
        device: torch.device | str = "cpu",
        *,
        ids: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        """Take the two sides.

        Args:
            queries: [N, D], turned into fp32; a memory-mapped array is not copied.
            gallery: [M, D].
            device: Where the products are computed.
            ids: Of the queries [N] and of the gallery [M], to name a vector by.

        Raises:
            ValueError: The sides do not fit together, or a vector is not finite (its row and id are named).
        """
        self.queries = as_matrix(queries, "queries", device)  # [N, D]
        self.gallery = as_matrix(gallery, "gallery", device)  # [M, D]
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise ValueError(
                f"queries have {self.queries.shape[1]} dimensions, the gallery has {self.gallery.shape[1]}: "
                "both must come from the same member."
            )
        query_ids, gallery_ids = ids or (None, None)
        for name, side, called in (("query", self.queries, query_ids), ("gallery", self.gallery, gallery_ids)):
            if called is not None and len(called) != len(side):
                raise ValueError(
                    f"there are {len(called)} {name} ids for {len(side)} {name} rows: give one id per row."
                )
        self._lengths = (  # [N], [M]
            _lengths(self.queries, "queries", query_ids),
            _lengths(self.gallery, "gallery", gallery_ids),
        )
        self._rounded = Recent[Tensor](self.device)
        self._reach = float(longest(self._lengths[0])) * float(longest(self._lengths[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.queries), len(self.gallery)

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.queries.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """One block of the matrix product; `coarse`: of the vectors rounded to bf16, where that is fast.

        With q' and g' the rounded vectors, q.g - q'.g' = (q - q').g + q'.(g - g'), and neither product exceeds that of
        its lengths (Cauchy and Schwarz). Their sum in fp32, and its rounding to bf16, come on top.
        """
        left, right = self.queries[queries], self.gallery[gallery]
        if not (coarse and self._reach < HUGE and fast_bf16(self.device)):
            return Tile(product(left, right), torch.full((1, 1), self.noise, device=self.device))
        scores = rounded_product(self._rounded.get(queries, self._round), [right])
        (q_lengths, g_lengths), (q_lost, g_lost) = self._lengths, self._lost
        q, g = longest(q_lengths[queries]), longest(g_lengths[gallery])
        dq, dg = longest(q_lost[queries]), longest(g_lost[gallery])
        noise = dq * g + (q + dq) * dg + BF16_ROUNDING * largest(scores)
        # four times the bound of an IEEE sum: tensor cores cut off where others round
        # (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7, 2021)
        noise = noise + 4 * self._sum_rounding * (q + dq) * (g + dg) + self._underflow
        return Tile(scores, noise.view(1, 1))

    @property
    def noise(self) -> float:
        """The bound that holds for every order of summation: D roundings of products no longer than the vectors.

        Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. (3.5). Where torch is allowed to round the
        inputs of a product (TF32, bf16), their error is added.
        """
        return (self._sum_rounding + input_rounding(self.device)) * self._reach + self._underflow

    @property
    def _sum_rounding(self) -> float:
        return (self.queries.shape[1] + 6) * FP32_ROUNDING

    @property
    def _underflow(self) -> float:
        return 4 * self.queries.shape[1] * TINY

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Exact inner products: each product of two fp32 numbers fits fp64, and the sum is a fixed binary tree."""
        if len(queries) > MANY:  # only where much is in doubt, most often because vectors repeat: each product once
            keys, same = (self._distinct[0][queries] * self.shape[1] + self._distinct[1][gallery]).unique(
                return_inverse=True
            )
            return self._products(keys // self.shape[1], keys % self.shape[1])[same]
        return self._products(queries, gallery)

    def quick_pairs(self, queries: Tensor, gallery: Tensor) -> tuple[Tensor, float] | None:
        """Inner products of chosen pairs in fp32, dozens of times as fast as the exact ones; on CPUs."""
        scores = chosen_products(self.queries, self.gallery, queries, gallery)
        return None if scores is None else (scores, self.noise)

    def _products(self, queries: Tensor, gallery: Tensor) -> Tensor:
        d, count = self.queries.shape[1], len(queries)
        at_once = max(1, min(count, (1 << 17 if self.device.type == "cpu" else 1 << 25) // max(1, d)))
        found = torch.empty(count, dtype=torch.float64, device=self.device)
        narrow = self.queries.new_empty(at_once, d)  # the same memory for every part: twice as fast as new one
        left, right = (torch.empty(at_once, d, dtype=torch.float64, device=self.device) for _ in range(2))
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            size = part.stop - start
            left[:size] = torch.index_select(self.queries, 0, queries[part], out=narrow[:size])
            right[:size] = torch.index_select(self.gallery, 0, gallery[part], out=narrow[:size])
            found[part] = _sums(left[:size].mul_(right[:size]))
        return found

    def _round(self, queries: slice) -> Tensor:
        return self.queries[queries].bfloat16()

    @cached_property
    def _lost(self) -> tuple[Tensor, Tensor]:
        """Lengths [N], [M] of what rounding to bf16 takes from each vector."""
        return _lost(self.queries), _lost(self.gallery)

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor]:
        return _first_of_same(self.queries), _first_of_same(self.gallery)


def _sums(terms: Tensor) -> Tensor:
    """Sums [K] of [K, D] over D, in an order that is the same for every K and on every device. Overwrites its input."""
    if terms.shape[1] == 0:
        return terms.new_zeros(len(terms))
    if terms.device.type == "cpu" and terms.numel() < FEW_TERMS:
        return torch.from_numpy(_tree_sum(terms.numpy()))
    return _tree_sum(terms)


def _tree_sum(terms: Array) -> Array:
    """Sum over the columns by halving."""
    width = terms.shape[1]
    while width > 1:
        half = width // 2
        if width % 2:
            terms[:, 0] += terms[:, width - 1]
        terms[:, :half] += terms[:, half : 2 * half]
        width = half
    return terms[:, 0]


def _first_of_same(vectors: Tensor) -> Tensor:
    """For each row [N, D] the first row with the same bits, [N]; found by a hash, then compared."""
    n, d = vectors.shape
    factors = torch.randint(-(2**62), 2**62, (d,), generator=torch.Generator().manual_seed(0)).to(vectors.device)
    keys = torch.cat([(part.view(torch.int32).long() * factors).sum(1) for part in vectors.split(1024)])
    own = torch.arange(n, device=vectors.device)
    names, group = keys.unique(return_inverse=True)
    first = own.new_full((len(names),), n).scatter_reduce_(0, group, own, "amin")[group]
    same = torch.cat(
        [(vectors[i] == vectors[j]).all(1) for i, j in zip(own.split(1024), first.split(1024), strict=True)]
    )
    return torch.where(same, first, own)


def _lengths(vectors: Tensor, name: str, ids: Sequence[str] | None) -> Tensor:
    """Upper bounds of the lengths [N] of vectors, found in blocks; also the check that all are finite."""
    lengths = vectors.new_empty(len(vectors))  # allocated first: small results between large blocks scatter the heap
    for start in range(0, len(vectors), BLOCK):
        lengths[start : start + BLOCK] = length_bound(vectors[start : start + BLOCK])
    if not bool(torch.isfinite(lengths).all()):
        row = int((~torch.isfinite(lengths)).nonzero()[0])
        called = "" if ids is None else f" ('{ids[row]}')"
        raise ValueError(f"row {row} of the {name}{called} is not finite (NaN, infinite, or too long for fp32).")
    return lengths


def _lost(vectors: Tensor) -> Tensor:
    lengths = vectors.new_empty(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK]
        lengths[start : start + BLOCK] = length_bound(part - part.bfloat16())
    return lengths
