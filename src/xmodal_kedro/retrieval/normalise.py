"""Normalisations that bring the scores of different members to one scale, row by row, without an N x M matrix.

A row holds the scores of one query. Each normalisation turns a score source into another and needs at most one
streaming pass for the statistics of the rows. None of them changes the order within a row; they matter where members
are mixed. They look at the whole gallery but at one query at a time: a query's result does not depend on other queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource, Tile, rounding

STATISTICS_TILE = (512, 2048)  # fixed, so that the statistics do not depend on the tiles of whoever ranks
NO_SPREAD = 2.0**-22  # a row whose scores differ by less, relative to their size, says nothing: it is fp32 rounding

Normalisation = Callable[[ScoreSource, float], ScoreSource]
"""A source and the temperature (which only the softmax reads) to the normalised source."""

NORMALISATIONS: dict[str, Normalisation] = {}


def normalisation(name: str) -> Callable[[Normalisation], Normalisation]:
    """Register a normalisation under the name that configs use."""

    def register(function: Normalisation) -> Normalisation:
        if name in NORMALISATIONS:
            raise ValueError(f"the normalisation '{name}' is registered twice.")
        NORMALISATIONS[name] = function
        return function

    return register


def normalised(source: ScoreSource, name: str, temperature: float = 0.01) -> ScoreSource:
    """The source on the scale of a registered normalisation.

    Args:
        source: [N, M] scores of one member.
        name: `none`, `row_l2`, `zscore`, `minmax`, `softmax`, or another that is registered.
        temperature: Of the softmax.

    Raises:
        ValueError: The name is not known (all names are listed), or the temperature is not above zero.
    """
    if name not in NORMALISATIONS:
        raise ValueError(f"there is no normalisation '{name}'; there are: {', '.join(NORMALISATIONS)}.")
    if not temperature > 0.0:
        raise ValueError(f"the temperature must be above zero; it is {temperature}.")
    return NORMALISATIONS[name](source, temperature)


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Of the M scores of each row; all [N] fp64. `log_sum_exp` is that of the scores divided by the temperature."""

    l2: Tensor
    mean: Tensor
    std: Tensor
    minimum: Tensor
    maximum: Tensor
    log_sum_exp: Tensor


def row_statistics(source: ScoreSource, temperature: float = 1.0) -> RowStatistics:
    """Statistics of every row in one pass over tiles; sums in fp64, the spread by Chan's update.

    Chan, Golub, LeVeque: Algorithms for computing the sample variance, The American Statistician 37 (1983).

    Args:
        source: [N, M], with M at least 1.
        temperature: Divides the scores in `log_sum_exp`.
    """
    n, m = source.shape
    if m == 0:
        raise ValueError("there is no statistic of a row without scores: the gallery is empty.")

    def full(value: float) -> Tensor:
        return torch.full((n,), value, dtype=torch.float64, device=source.device)

    squares, mean, spread = full(0.0), full(0.0), full(0.0)
    low, high, exponentials = full(torch.inf), full(-torch.inf), full(-torch.inf)
    height, width = STATISTICS_TILE
    for top in range(0, n, height):
        rows = slice(top, min(top + height, n))
        for left in range(0, m, width):
            scores = source.tile(rows, slice(left, min(left + width, m))).scores.double()
            count = scores.shape[1]
            tile_mean = scores.mean(1)
            shift = tile_mean - mean[rows]
            spread[rows] += (scores - tile_mean[:, None]).square().sum(1) + shift.square() * (
                left * count / (left + count)
            )
            mean[rows] += shift * (count / (left + count))
            squares[rows] += scores.square().sum(1)
            low[rows] = torch.minimum(low[rows], scores.amin(1))
            high[rows] = torch.maximum(high[rows], scores.amax(1))
            exponentials[rows] = torch.logaddexp(exponentials[rows], torch.logsumexp(scores / temperature, 1))
    return RowStatistics(squares.sqrt(), mean, (spread / m).sqrt(), low, high, exponentials)


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

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """The source's tile on the new scale; its noise is scaled with it, and the new roundings are added."""
        scores, noise = self.source.tile(queries, gallery)
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
def none(source: ScoreSource, temperature: float) -> ScoreSource:
    """Scores as they are."""
    return source


@normalisation("row_l2")
def row_l2(source: ScoreSource, temperature: float) -> ScoreSource:
    """Divided by the Euclidean norm of the row: the first place of CVPR 2023 track 2 mixed its members so."""
    of = row_statistics(source)
    return RowScaled(source, torch.zeros_like(of.l2), _inverse(of.l2, torch.zeros_like(of.l2)))


@normalisation("zscore")
def zscore(source: ScoreSource, temperature: float) -> ScoreSource:
    """Mean 0 and standard deviation (over the whole gallery, without correction) 1; a constant row becomes 0."""
    of = row_statistics(source)
    return RowScaled(source, of.mean, _inverse(of.std, torch.maximum(of.maximum.abs(), of.minimum.abs())))


@normalisation("minmax")
def minmax(source: ScoreSource, temperature: float) -> ScoreSource:
    """Lowest score 0, highest 1; a constant row becomes 0."""
    of = row_statistics(source)
    size = torch.maximum(of.maximum.abs(), of.minimum.abs())
    return RowScaled(source, of.minimum, _inverse(of.maximum - of.minimum, size))


@normalisation("softmax")
def softmax(source: ScoreSource, temperature: float) -> ScoreSource:
    """Probabilities over the gallery: exp(score / temperature), divided by its sum over the row."""
    of = row_statistics(source, temperature)
    return RowScaled(
        source, of.log_sum_exp * temperature, torch.full_like(of.mean, 1.0 / temperature), exponential=True
    )


def _inverse(spread: Tensor, size: Tensor) -> Tensor:
    """1 / spread [N]; 0 where the spread is nothing but rounding of numbers of this size."""
    return torch.where(spread > NO_SPREAD * size, 1.0 / spread, torch.zeros_like(spread))
