"""Normalisations that look at one query at a time: they bring members to one scale and keep every order.

A row holds the scores of one query. Each normalisation needs at most one streaming pass for the statistics of the rows.
None of them changes the order within a row; they matter where members are mixed. A query's result does not depend on
other queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.statistics import row_statistics
from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile, rounding

NO_SPREAD = 2.0**-22  # a row whose scores differ by less, relative to their size, says nothing: it is fp32 rounding


@dataclass(frozen=True, eq=False)
class RowScaled:
    """(score - shift) * scale of each row, then its exponential where asked.

    Attributes:
        source: [N, M].
        shift: [N] fp64.
        scale: [N] fp64, not negative.
        exponential: Whether the exponential is taken of the result.
    """

    source: ScoreSource
    shift: Tensor
    scale: Tensor
    exponential: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice, *, coarse: bool = False) -> Tile:
        """The source's tile on the new scale; its noise is scaled with it, and the new roundings are added."""
        scores, noise = self.source.tile(queries, gallery, coarse=coarse)
        shift, scale = self.shift[queries, None].float(), self.scale[queries, None].float()  # [B, 1]
        scores = scores.sub_(shift).mul_(scale)
        noise = scale * (noise + FP32_ROUNDING * shift.abs()) + 8 * rounding(scores)
        if self.exponential:
            scores = scores.exp_()
            # e^(x + d) - e^x = e^x (e^d - 1); twice d, because the tile's own x is wrong by up to d, too
            noise = scores * (torch.expm1(2 * noise) + 8 * FP32_ROUNDING) + torch.finfo(torch.float32).tiny
        return Tile(scores, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores on the new scale."""
        scores = (self.source.pairs(queries, gallery) - self.shift[queries]) * self.scale[queries]
        return scores.exp() if self.exponential else scores


@normalisation("none")
def none(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Scores as they are."""
    return source


@normalisation("row_l2")
def row_l2(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Divided by the Euclidean norm of the row: the first place of CVPR 2023 track 2 mixed its members so."""
    of = row_statistics(source)
    return RowScaled(source, torch.zeros_like(of.l2), _inverse(of.l2, torch.zeros_like(of.l2)))


@normalisation("zscore")
def zscore(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Mean 0 and standard deviation (over the whole gallery, without correction) 1; a constant row becomes 0."""
    of = row_statistics(source)
    return RowScaled(source, of.mean, _inverse(of.std, torch.maximum(of.maximum.abs(), of.minimum.abs())))


@normalisation("minmax")
def minmax(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Lowest score 0, highest 1; a constant row becomes 0."""
    of = row_statistics(source)
    size = torch.maximum(of.maximum.abs(), of.minimum.abs())
    return RowScaled(source, of.minimum, _inverse(of.maximum - of.minimum, size))


@normalisation("softmax")
def softmax(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Probabilities over the gallery: exp(score / temperature), divided by its sum over the row."""
    of = row_statistics(source, setting.temperature)
    return RowScaled(
        source,
        of.log_sum_exp * setting.temperature,
        torch.full_like(of.mean, 1.0 / setting.temperature),
        exponential=True,
    )


def _inverse(spread: Tensor, size: Tensor) -> Tensor:
    """1 / spread [N]; 0 where the spread is nothing but rounding of numbers of this size."""
    return torch.where(spread > NO_SPREAD * size, 1.0 / spread, torch.zeros_like(spread))
