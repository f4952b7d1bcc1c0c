"""Statistics of every row of a score source in one pass over tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores import ScoreSource

STATISTICS_TILE = (512, 2048)  # fixed, so that the statistics do not depend on the tiles of whoever ranks


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
