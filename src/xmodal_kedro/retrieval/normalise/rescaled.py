"""The one source behind almost every normalisation: scores shifted by row and column, scaled, and exponentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import FP32_ROUNDING, LinearForm, ScoreSource, Tile, linear_form, rounding
from xmodal_kedro.retrieval.scores.precision import largest

STEEP = 60.0  # exponents further from zero would run out of fp32, and order with it
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Rescaled:
    """x = (score - row shift - column shift) * scale of the row, and what is made of it.

    The exponential of an x below -60 would soon be lost in fp32, and such scores would tie. It is drawn out instead:
    e^-60 / (1 - 60 - x), which continues value and slope. So no value changes by more than e^-60, and order survives.
    Above 60, where only the noise of a tiny temperature leads, it goes on as e^60 (1 + x - 60).

    Attributes:
        source: [N, M].
        scale: [N] fp64, not negative.
        row_shift: [N] fp64; none is 0.
        column_shift: [M] fp64; none is 0.
        shifted: [N] bool: the rows that the column shift is for; none is all.
        form: `linear` gives x, `exponential` e^x, `prior` the score times e^x.
    """

    source: ScoreSource
    scale: Tensor
    row_shift: Tensor | None = None
    column_shift: Tensor | None = None
    shifted: Tensor | None = None
    form: Literal["linear", "exponential", "prior"] = "linear"

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
        scale = self.scale[queries, None].float()  # [B, 1]
        x, slack = torch.empty_like(scores) if self.form == "prior" else scores, noise
        shift = x.new_zeros(1, 1) if self.row_shift is None else self.row_shift[queries, None].float()
        slack = slack + 2 * FP32_ROUNDING * shift.abs()
        if self.column_shift is not None:
            columns = self.column_shift[None, gallery].float()
            slack = slack + 2 * rounding(columns)
            columns = columns if self.shifted is None else columns * self.shifted[queries, None].float()
            shift = columns if self.row_shift is None else shift + columns
        torch.sub(scores, shift, out=x).mul_(scale)
        size = largest(x)
        slack = scale * slack + 8 * FP32_ROUNDING * size
        if self.form == "linear":
            return Tile(x, slack)
        # the logarithm of the result has a slope of at most 1 in x, so it is wrong by no more than x is
        relative = torch.expm1(slack) + 16 * FP32_ROUNDING
        value = _exponential(x, float(size))
        if self.form == "exponential":
            result, error = value, value * relative
        else:
            result = value * scores
            error = value.mul_(noise * (1.0 + relative)).addcmul_(result.abs(), relative)
        if not bool(torch.isfinite(relative).all()):
            error.fill_(torch.inf)
        return Tile(result, error.add_(TINY))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores on the new scale."""
        scores = self.source.pairs(queries, gallery)
        x = scores
        if self.row_shift is not None:
            x = x - self.row_shift[queries]
        if self.column_shift is not None:
            shift = self.column_shift[gallery]
            x = x - (shift if self.shifted is None else shift * self.shifted[queries])
        x = x * self.scale[queries]
        if self.form == "linear":
            return x
        value = _exponential(x, float(largest(x)))
        return value * scores if self.form == "prior" else value

    def linear(self) -> LinearForm | None:
        """As row-scaled inner products, where it is nothing else: mixtures of such sources are one product."""
        if self.form != "linear" or self.column_shift is not None:
            return None
        form = linear_form(self.source)
        return None if form is None else form.scaled(self.scale, 0.0 if self.row_shift is None else self.row_shift)


def _exponential(x: Tensor, size: float) -> Tensor:
    """e^x between -60 and 60, drawn out beyond; may overwrite x. The slope of its logarithm is 1 at most.

    `size` is the largest absolute value in x.
    """
    if size <= STEEP:
        return x.exp_()
    inside = x.clamp(-STEEP, STEEP)
    beyond = x.sub_(inside)
    return inside.exp_().mul_(1.0 + beyond.clamp(min=0.0)).div_(1.0 - beyond.clamp_(max=0.0))
