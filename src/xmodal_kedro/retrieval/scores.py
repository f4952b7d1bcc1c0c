"""Where scores come from: tiles on demand, never an N x M matrix, and an exact value for any single pair.

A tile is fast and slightly wrong: the order in which a matrix product sums depends on the tile's shape. So every tile
states a bound on its error, and every source can give the exact score of chosen pairs: products and sums in fp64, in an
order that depends on the two vectors alone. Whoever compares scores takes the tile where the bound leaves no doubt and
the exact score elsewhere; the result then depends neither on tile sizes nor on the machine, and identical vectors tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

FP32_ROUNDING = 2.0**-24  # relative error of one fp32 operation
MANY = 1 << 16  # exact scores at once; above it, it pays to look for pairs that occur twice


class Tile(NamedTuple):
    """Scores of a block of queries against a block of the gallery.

    Attributes:
        scores: [B, G] fp32.
        noise: Broadcastable to [B, G]: no entry differs from the exact score, rounded to fp32, by more.
    """

    scores: Tensor
    noise: Tensor


class ScoreSource(Protocol):
    """Scores of N queries (rows) against a gallery of M items (columns); higher is better."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tiles are computed."""
        ...

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """Scores of a block, with a bound on their error; the caller may overwrite the scores."""
        ...

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Exact scores [K] fp64 of the pairs (queries[i], gallery[i]); both [K] int64 on `device`."""
        ...


class EmbeddingScores:
    """Inner products of two sets of vectors: cosines, where the vectors have unit length."""

    def __init__(
        self, queries: Tensor | np.ndarray, gallery: Tensor | np.ndarray, device: torch.device | str = "cpu"
    ) -> None:
        """Take the two sides.

        Args:
            queries: [N, D], turned into fp32; a memory-mapped array is not copied.
            gallery: [M, D].
            device: Where the products are computed.

        Raises:
            ValueError: The sides do not fit together, or a vector is not finite (its row is named).
        """
        self.queries = _matrix(queries, "queries", device)  # [N, D]
        self.gallery = _matrix(gallery, "gallery", device)  # [M, D]
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise ValueError(
                f"queries have {self.queries.shape[1]} dimensions, the gallery has {self.gallery.shape[1]}: "
                "both must come from the same member."
            )
        self._reach = _longest(self.queries, "queries") * _longest(self.gallery, "gallery")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.queries), len(self.gallery)

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.queries.device

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """One block of the matrix product."""
        scores = self.queries[queries] @ self.gallery[gallery].T
        return Tile(scores, torch.full((1, 1), self.noise, device=self.device))

    @property
    def noise(self) -> float:
        """The bound that holds for every order of summation: D roundings of products no longer than the vectors.

        Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. (3.5). Where torch is allowed to round the
        inputs of a product (TF32, bf16), their error is added.
        """
        inputs = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[torch.get_float32_matmul_precision()]
        return ((self.queries.shape[1] + 6) * FP32_ROUNDING + inputs) * self._reach

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Exact inner products: each product of two fp32 numbers fits fp64, and the sum is a fixed binary tree."""
        if len(queries) > MANY:  # only where much is in doubt, most often because vectors repeat: each product once
            keys, same = (self._distinct[0][queries] * self.shape[1] + self._distinct[1][gallery]).unique(
                return_inverse=True
            )
            return self._products(keys // self.shape[1], keys % self.shape[1])[same]
        return self._products(queries, gallery)

    def _products(self, queries: Tensor, gallery: Tensor) -> Tensor:
        at_once = max(1, (1 << 19 if self.device.type == "cpu" else 1 << 25) // max(1, self.queries.shape[1]))
        found = torch.empty(len(queries), dtype=torch.float64, device=self.device)
        for start in range(0, len(queries), at_once):
            part = slice(start, start + at_once)
            left, right = self.queries[queries[part]].double(), self.gallery[gallery[part]].double()
            found[part] = _tree_sum(left.mul_(right))
        return found

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor]:
        return _first_of_same(self.queries), _first_of_same(self.gallery)


class MatrixScores:
    """Scores that exist as a matrix already: small sets, cross-encoders, tests."""

    def __init__(self, matrix: Tensor | np.ndarray, device: torch.device | str = "cpu") -> None:
        """Take the matrix [N, M]; it is turned into fp32, and must be finite (ValueError names the entry)."""
        self.matrix = _matrix(matrix, "scores", device)
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

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """A copy of a block of the matrix, without error."""
        return Tile(self.matrix[queries, gallery].clone(), torch.zeros(1, 1, device=self.device))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Entries of the matrix."""
        return self.matrix[queries, gallery].double()


@dataclass(frozen=True, eq=False)
class Transposed:
    """The other direction: the gallery asks, the queries are ranked."""

    source: ScoreSource

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the source."""
        return self.source.shape[1], self.source.shape[0]

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """The source's tile, transposed."""
        return flipped(self.source.tile(gallery, queries))

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores."""
        return self.source.pairs(gallery, queries)


@dataclass(frozen=True, eq=False)
class WeightedScores:
    """Sum over members of weight times score; members of weight 0 cost nothing.

    The 1st-place mixture is `WeightedScores([normalised(s, "row_l2") for s in members], [0.25] * 4)`.
    """

    sources: Sequence[ScoreSource]
    weights: Sequence[float]
    _used: list[tuple[ScoreSource, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the members rank the same rows."""
        if len(self.sources) != len(self.weights):
            raise ValueError(f"{len(self.sources)} score sources, but {len(self.weights)} weights.")
        bad = [w for w in self.weights if not (np.isfinite(w) and w >= 0.0)]
        if bad or not any(self.weights):
            raise ValueError(f"weights must be finite, none negative and one positive, not {list(self.weights)}.")
        if len(shapes := {source.shape for source in self.sources}) > 1:
            raise ValueError(
                f"members have scores of different shapes {sorted(shapes)}: all of them must be embedded over the same "
                "queries and gallery, in the same order."
            )
        object.__setattr__(self, "_used", [(s, w) for s, w in zip(self.sources, self.weights, strict=True) if w > 0.0])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.sources[0].shape

    @property
    def device(self) -> torch.device:
        """The first member's; all must agree."""
        return self.sources[0].device

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """The weighted sum of the members' tiles; their errors add up."""
        total: Tensor | None = None
        noise = torch.zeros(1, 1, device=self.device)
        for source, weight in self._used:
            part = source.tile(queries, gallery)
            noise = noise + weight * part.noise + (len(self._used) + 3) * weight * rounding(part.scores)
            total = part.scores * weight if total is None else total.add_(part.scores, alpha=weight)
        assert total is not None
        return Tile(total, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The weighted sum of the members' exact scores, in the order of the members."""
        total = torch.zeros(len(queries), dtype=torch.float64, device=self.device)
        for source, weight in self._used:
            total += weight * source.pairs(queries, gallery)
        return total


class Reordered:
    """A source whose first candidates of each row stand in the order of a second stage; all else keeps its score.

    The candidates of a row share out the scores that they have in the source, best first: whoever is first in the new
    order takes the highest of them. So the candidates stay before the tail if they were there, and scores stay on the
    scale of the source. Candidates whose new scores are equal keep the order of the source; those that are equal in
    both tie, on the lowest of the scores that they would take. Exact scores are raised by the last bits of fp64, never
    lowered: the last candidate's above a tail that ties with it, and others' where the source ties candidates that the
    second stage tells apart. So nobody drops behind the tail, and the new order is strict.
    """

    def __init__(self, source: ScoreSource, candidates: Tensor, second: Tensor) -> None:
        """Take the candidates; their scores in the source are computed here, once.

        Args:
            source: [N, M].
            candidates: [N, K] int64 columns, distinct within a row, in any order.
            second: [N, K] scores of the second stage, higher is better.

        Raises:
            ValueError: The shapes do not fit, a row names a column twice, or a score is not finite.
        """
        n, m = source.shape
        if candidates.shape != second.shape or len(candidates) != n:
            raise ValueError(
                f"candidates have shape {tuple(candidates.shape)}, their scores {tuple(second.shape)}: both must be "
                f"[{n}, K]."
            )
        if not bool(torch.isfinite(second).all()):
            row = int((~torch.isfinite(second)).nonzero()[0, 0])
            raise ValueError(f"a new score of query row {row} is not a finite number.")
        self.source = source
        candidates, order = candidates.to(source.device).sort(dim=1)
        second = second.to(source.device).gather(1, order)
        if bool((candidates[:, 1:] == candidates[:, :-1]).any()):
            raise ValueError("a row names the same candidate twice.")
        rows = torch.arange(n, device=source.device).repeat_interleave(candidates.shape[1])
        first = source.pairs(rows, candidates.flatten()).view_as(candidates)
        self._keys = rows * m + candidates.flatten()  # [N * K], ascending
        self._scores = _handed_out(first, second).flatten()  # [N * K] fp64
        self._k = candidates.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """The source's."""
        return self.source.device

    def tile(self, queries: slice, gallery: slice) -> Tile:
        """The source's tile with the exact scores of the candidates in it; its noise bounds theirs, which is none."""
        scores, noise = self.source.tile(queries, gallery)
        part = slice(queries.start * self._k, queries.stop * self._k)
        rows, columns = self._keys[part] // self.shape[1] - queries.start, self._keys[part] % self.shape[1]
        inside = (columns >= gallery.start) & (columns < gallery.stop)
        scores[rows[inside], columns[inside] - gallery.start] = self._scores[part][inside].float()
        return Tile(scores, noise)

    def pairs(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The source's exact scores, and those handed out to candidates."""
        scores = self.source.pairs(queries, gallery)
        if len(self._keys) == 0:
            return scores
        keys = queries * self.shape[1] + gallery
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return torch.where(self._keys[place] == keys, self._scores[place], scores)


def flipped(tile: Tile) -> Tile:
    """A copy of the tile seen from the gallery, laid out row by row."""
    return Tile(tile.scores.T.clone(memory_format=torch.contiguous_format), tile.noise.T)


def rounding(scores: Tensor) -> Tensor:
    """Error of one fp32 operation with a result as large as the largest of `scores` [B, G]; a scalar tensor."""
    if scores.numel() == 0:
        return torch.zeros((), device=scores.device)
    low, high = torch.aminmax(scores)
    return FP32_ROUNDING * torch.maximum(-low, high)


def second_order(first: Tensor, second: Tensor) -> Tensor:
    """Order [N, K] of candidates by their scores of the second stage, then of the first, then as they stand."""
    order = first.argsort(dim=1, stable=True, descending=True)
    return order.gather(1, second.gather(1, order).argsort(dim=1, stable=True, descending=True))


def _handed_out(first: Tensor, second: Tensor) -> Tensor:
    """What each candidate [N, K] of `Reordered` gets of the row's scores `first`, fp64."""
    order = second_order(first, second)
    high = first.sort(dim=1, descending=True).values
    first, second = first.gather(1, order), second.gather(1, order)
    ceiling = first.new_tensor(torch.inf)
    if high.shape[1]:
        high[:, -1] = high[:, -1].nextafter(ceiling)  # before whatever ties with it outside of the candidates
    for place in range(first.shape[1] - 2, -1, -1):
        here, below = (slice(None), place), (slice(None), place + 1)
        tied = (first[here] == first[below]) & (second[here] == second[below])
        above = torch.maximum(high[here], high[below].nextafter(ceiling))
        high[here] = torch.where(tied, high[below], above)
    return torch.empty_like(high).scatter_(1, order, high)


def _tree_sum(terms: Tensor) -> Tensor:
    """Sum [K, D] over D by halving: the order is the same for every K and on every device. Overwrites its input."""
    while (width := terms.shape[1]) > 1:
        half = width // 2
        if width % 2:
            terms[:, 0] += terms[:, -1]
        terms = terms[:, :half] + terms[:, half : 2 * half]
    return terms[:, 0] if terms.shape[1] else terms.new_zeros(len(terms))


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


def _matrix(values: Tensor | np.ndarray, name: str, device: torch.device | str) -> Tensor:
    values = torch.as_tensor(values).to(device=device, dtype=torch.float32)
    if values.ndim != 2:
        raise ValueError(f"{name} must be a matrix [rows, columns]; its shape is {tuple(values.shape)}.")
    return values


def _longest(vectors: Tensor, name: str) -> float:
    """Length of the longest vector, found in blocks; also the check that all are finite."""
    longest = 0.0
    for start in range(0, len(vectors), 4096):
        lengths = torch.linalg.vector_norm(vectors[start : start + 4096], dim=1)
        if not bool(torch.isfinite(lengths).all()):
            row = start + int((~torch.isfinite(lengths)).nonzero()[0])
            raise ValueError(f"row {row} of the {name} is not finite (NaN, infinite, or too long for fp32).")
        longest = max(longest, float(lengths.max()))
    return longest
