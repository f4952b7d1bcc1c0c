"""Sums of row-scaled inner products: one product of long vectors instead of a matrix per member.

The cosines of a member, divided by the norm of their row (or less its mean, divided by its standard deviation), are the
inner products of queries that are scaled by one number each. So a mixture of such members is one inner product: of the
scaled queries, put one after the other, and of the vectors of the gallery, put one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.embedding import EmbeddingScores
from xmodal_kedro.retrieval.scores.precision import (
    BF16_ROUNDING,
    HUGE,
    fast_bf16,
    largest,
    length_bound,
    longest,
)
from xmodal_kedro.retrieval.scores.product import rounded_product
from xmodal_kedro.retrieval.scores.recent import Recent
from xmodal_kedro.retrieval.scores.source import FP32_ROUNDING, ScoreSource, Tile, Transposed


class Term(NamedTuple):
    """Inner products, each row times a number: `scale` [N] fp64, not negative."""

    embeddings: EmbeddingScores
    scale: Tensor


@dataclass(frozen=True, eq=False)
class LinearForm:
    """Sum over terms of scale times inner product, plus an offset of each row [N] fp64; tiles alone.

    The terms may differ in dimension. Copies are made of the block that is asked for, and of nothing else.
    """

    terms: list[Term]
    offset: Tensor
    _scaled: Recent[tuple[Tensor, Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Nothing is scaled yet."""
        object.__setattr__(self, "_scaled", Recent(self.offset.device))

    def scaled(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> LinearForm:
        """(score - shift) * scale of each row."""
        return LinearForm([Term(one, scale * old) for one, old in self.terms], (self.offset - shift) * scale)

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The block, with a bound on its error for each row; `coarse`: as one product of bf16, where that is fast."""
        size = sum((scale[queries] * one._reach for one, scale in self.terms), self.offset[queries].abs())
        if coarse and fast_bf16(self.offset.device) and bool((size < HUGE).all()):
            return self._coarse(queries, gallery, size)
        scores = self.offset[queries, None].float().expand(-1, gallery.stop - gallery.start)
        noise = (2 * len(self.terms) + 4) * FP32_ROUNDING * size  # partial sums, and roundings of scales and offset
        for one, scale in self.terms:
            left = one.queries[queries] * scale[queries, None].float()
            scores = torch.addmm(scores, left, one.gallery[gallery].T)
            noise = noise + scale[queries] * one.noise
        return Tile(scores, _up(noise))

    def _coarse(self, queries: slice, gallery: slice, size: Tensor) -> Tile:
        """Errors as in `EmbeddingScores.tile`, term by term."""
        left, lengths, lost = self._scaled.get(queries, self._left)
        noise = torch.zeros_like(size)
        for number, (one, scale) in enumerate(self.terms):
            g, dg = longest(one._lengths[1][gallery]), longest(one._lost[1][gallery])
            q, dq = lengths[:, number], lost[:, number]
            noise += dq * g + (q + dq) * dg + scale[queries] * one._underflow + one._underflow
        scores = rounded_product(left, [one.gallery[gallery] for one, _ in self.terms])
        sums = 8 * (left.shape[1] + 6) * FP32_ROUNDING * size
        noise += BF16_ROUNDING * largest(scores) + sums + (len(self.terms) + 4) * FP32_ROUNDING * size
        return Tile(scores.add_(self.offset[queries, None].float()), _up(noise))

    def _left(self, queries: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries [B, D] in bf16, and lengths [B, terms] of their parts and of what rounding took from them."""
        parts, lengths, lost = [], [], []
        for one, scale in self.terms:
            exact = one.queries[queries] * scale[queries, None].float()
            parts.append(exact.bfloat16())
            lengths.append(length_bound(exact) * (1 + 4 * FP32_ROUNDING))
            lost.append(length_bound(exact.sub_(parts[-1])) + 4 * FP32_ROUNDING * lengths[-1])
        return torch.cat(parts, 1), torch.stack(lengths, 1), torch.stack(lost, 1)


@runtime_checkable
class Linear(Protocol):
    """A source that may be a linear form of embeddings."""

    def linear(self) -> LinearForm | None:
        """The form, or none where it is something else."""
        ...


def linear_form(source: ScoreSource) -> LinearForm | None:
    """A source as a sum of row-scaled inner products, or none where it is something else."""
    if isinstance(source, EmbeddingScores):
        ones = torch.ones(len(source.queries), dtype=torch.float64, device=source.device)
        return LinearForm([Term(source, ones)], torch.zeros_like(ones))
    if isinstance(source, Transposed) and isinstance(inner := source.source, EmbeddingScores):
        return linear_form(EmbeddingScores(inner.gallery, inner.queries, inner.device))
    return source.linear() if isinstance(source, Linear) else None


def linear_sum(sources: list[tuple[ScoreSource, float]]) -> LinearForm | None:
    """The weighted sum of sources as one form, or none where one of them is not linear."""
    forms = [(linear_form(source), weight) for source, weight in sources]
    found = [form.scaled(weight) for form, weight in forms if form is not None]
    if len(found) < len(forms):
        return None
    offset = torch.stack([form.offset for form in found]).sum(0)
    return LinearForm([term for form in found for term in form.terms], offset)


def _up(noise: Tensor) -> Tensor:
    """As fp32 [B, 1], rounded up."""
    return (noise[:, None] * (1 + 2.0**-20)).float()
