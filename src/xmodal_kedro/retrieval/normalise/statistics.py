"""Statistics of the rows or columns of a score source, each in one pass over tiles or less.

Tiles are fp32 and never coarse; what they add up to is kept in fp64. `dim` is that of torch: 1 runs over the gallery
and leaves one number per query, 0 runs over the queries and leaves one per gallery item.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource, Transposed
from xmodal_kedro.retrieval.workers import side_by_side

CPU_TILE = (512, 1024)  # fixed, so that statistics do not depend on the tiles of whoever ranks
GPU_TILE = (8192, 8192)
CHUNK = 1024  # vectors that are turned into fp64 at once
STRIP = 128  # columns of a symmetric matrix that are computed at once, down to the diagonal


class Moments(NamedTuple):
    """Of the scores along one axis; all fp64. `std` is that of the whole population; `l2` is the Euclidean norm."""

    mean: Tensor
    std: Tensor
    l2: Tensor


class Extremes(NamedTuple):
    """Lowest and highest score along one axis, fp64."""

    low: Tensor
    high: Tensor


def moments(source: ScoreSource, dim: int = 1) -> Moments:
    """Mean, standard deviation and norm along an axis that is not empty.

    Of inner products they follow from the other side's mean and covariance: the mean of q.g over g is q.mean(g), the
    variance is q C q. That takes O((N + M) D^2) in fp64 and no pass over the scores. Other sources take one pass, with
    Chan's update of the spread (Chan, Golub, LeVeque: Algorithms for computing the sample variance, The American
    Statistician 37, 1983).
    """
    if isinstance(source, Transposed):
        return moments(source.source, 1 - dim)
    length = source.shape[dim]
    if isinstance(source, EmbeddingScores):
        own, others = (source.queries, source.gallery) if dim == 1 else (source.gallery, source.queries)
        mean, spread = _of_products(own, others)
    else:
        mean, spread = _of_tiles(source, dim)
    return Moments(mean, (spread / length).sqrt(), (spread + length * mean.square()).sqrt())


def extremes(source: ScoreSource, dim: int = 1) -> Extremes:
    """Lowest and highest score along an axis that is not empty, in one pass."""
    if isinstance(source, Transposed):
        return extremes(source.source, 1 - dim)
    low = _full(source, 1 - dim, torch.inf)
    high = _full(source, 1 - dim, -torch.inf)

    def take(kept: slice, _: slice, scores: Tensor) -> None:
        least, most = torch.aminmax(scores, dim=dim)
        low[kept] = torch.minimum(low[kept], least.double())
        high[kept] = torch.maximum(high[kept], most.double())

    _stream(source, dim, take)
    return Extremes(low, high)


def log_sum_exp(source: ScoreSource, temperature: float, dim: int = 1, shift: Tensor | None = None) -> Tensor:
    """log of the sum over an axis of exp(score / temperature + shift), in one pass.

    Each tile is summed relative to its own maximum; a running maximum brings the tiles together. A tile's fp32 error
    of e in the scores moves the result by e / temperature at most.

    Args:
        source: [N, M], not empty along `dim`.
        temperature: Above zero.
        dim: 1 sums over the gallery, 0 over the queries.
        shift: fp64, along the axis that is summed over: [M] for dim 1, [N] for dim 0.

    Returns:
        [N] for dim 1, [M] for dim 0, fp64.
    """
    if isinstance(source, Transposed):
        return log_sum_exp(source.source, temperature, 1 - dim, shift)
    shift = _full(source, dim, 0.0) if shift is None else shift
    high = _full(source, 1 - dim, -torch.inf)
    total = _full(source, 1 - dim, 0.0)

    def take(kept: slice, along: slice, scores: Tensor) -> None:
        torch.add(shift[along].float().unsqueeze(1 - dim), scores, alpha=1.0 / temperature, out=scores)
        most = scores.amax(dim, keepdim=True)
        part = scores.sub_(most).exp_().sum(dim).double()
        most = most.squeeze(dim).double()
        above = torch.maximum(high[kept], most)
        total[kept] = total[kept] * (high[kept] - above).exp() + part * (most - above).exp()
        high[kept] = above

    _stream(source, dim, take)
    return alike(source, 1 - dim, checked(high + total.log(), 1 - dim))


def checked(values: Tensor, dim: int, start: int = 0) -> Tensor:
    """Statistics of queries (dim 0) or gallery items (dim 1) from `start` on, if all are finite.

    Whatever comes after mixes rows and columns, and could name the wrong one.

    Raises:
        ValueError: One is not finite; its row is named.
    """
    if not bool((finite := torch.isfinite(values)).all()):
        row = start + int((~finite).nonzero()[0])
        raise ValueError(f"a score of {('query', 'gallery')[dim]} row {row} is not a finite number.")
    return values


def alike(source: ScoreSource, dim: int, values: Tensor) -> Tensor:
    """Values along an axis where identical vectors have the very same: in their last bits, sums depend on the place.

    Without it copies would no longer tie once their columns are shifted.
    """
    if isinstance(source, Transposed):
        return alike(source.source, 1 - dim, values)
    return values[source._distinct[dim]] if isinstance(source, EmbeddingScores) else values


def _full(source: ScoreSource, dim: int, value: float) -> Tensor:
    return torch.full((source.shape[dim],), value, dtype=torch.float64, device=source.device)


def _stream(source: ScoreSource, dim: int, take: Callable[[slice, slice, Tensor], None]) -> None:
    """Give every tile to `take`: its place on the axis that is kept, that on the one that is summed over, its scores.

    Blocks of the axis that is kept go side by side, each along the other axis in order. Scores are the taker's to
    overwrite.
    """
    sizes = CPU_TILE if source.device.type == "cpu" else GPU_TILE
    kept, along = (
        [
            slice(start, min(start + sizes[axis], source.shape[axis]))
            for start in range(0, source.shape[axis], sizes[axis])
        ]
        for axis in (1 - dim, dim)
    )

    def go(block: slice) -> None:
        for part in along:
            take(block, part, source.tile(*((block, part) if dim == 1 else (part, block))).scores)

    done = side_by_side(go, kept, source.device)
    for _ in tqdm(done, desc="normalise", total=len(kept), unit="block", delay=3, leave=False, disable=None):
        pass


def _of_products(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squared distances from it, of the products of each vector [N, D] with all others [M, D].

    The scatter C is symmetric: its blocks below the diagonal are not computed, and those above count twice in q C q.
    """
    centre = torch.stack([part.double().sum(0) for part in others.split(CHUNK)]).sum(0) / len(others)  # [D]
    scatter = torch.zeros(len(centre), len(centre), dtype=torch.float64, device=own.device)
    strips = [slice(start, start + STRIP) for start in range(0, len(centre), STRIP)]
    for part in others.split(CHUNK):
        apart = part.double() - centre
        for strip in strips:
            scatter[: strip.stop, strip].addmm_(apart[:, : strip.stop].T, apart[:, strip])
    for strip in strips:
        scatter[: strip.start, strip] *= 2.0
    mean, spread = [], []
    for part in own.split(CHUNK):
        wide = part.double()
        mean.append(wide @ centre)
        products = [wide[:, : strip.stop] @ scatter[: strip.stop, strip] for strip in strips]
        spread.append(torch.cat([*products, wide[:, :0]], 1).mul_(wide).sum(1).clamp_(min=0.0))
    return torch.cat(mean), torch.cat(spread)


def _of_tiles(source: ScoreSource, dim: int) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squared distances from it, of the scores along an axis."""
    mean, spread, seen = (_full(source, 1 - dim, 0.0) for _ in range(3))

    def take(kept: slice, _: slice, scores: Tensor) -> None:
        count = scores.shape[dim]
        about = scores.mean(dim, keepdim=True)
        apart = scores.sub_(about)
        slip = apart.mean(dim).double()  # what fp32 rounded off the mean
        own = torch.linalg.vector_norm(apart, dim=dim).double().square() - count * slip.square()
        away = about.squeeze(dim).double() + slip - mean[kept]
        share = count / (seen[kept] + count)
        spread[kept] += own + away.square() * (seen[kept] * share)
        mean[kept] += away * share
        seen[kept] += count

    _stream(source, dim, take)
    return mean, spread.clamp_(min=0.0)
