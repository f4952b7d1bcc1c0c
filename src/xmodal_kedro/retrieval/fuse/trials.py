"""What a metric is at many mixtures of the members: only comparisons whose outcome depends on the weights are made.

A trial costs no matrix product. Every member's exact best C items per query are taken once, and their union is scored
by every member. A relevant item's place in a mixture is the number of candidates that score as high. Whoever is at
least as high for every member is ahead for all weights, and whoever is lower for every member never is; what is left
are pairs on which members disagree, and a trial is one inner product of the weights with the difference of each. These
run in fp32, many trials at once; differences too small for fp32 are decided by the fp64 mixture, in the order in which
`WeightedScores.pairs` adds up. Queries that are identical are looked at once.

An item outside all lists scores at most the weighted sum of the last scores of the lists (Fagin, Lotem, Naor, JCSS 66,
2003), so for each query it is known whether the top K of a trial is certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from xmodal_kedro.retrieval.fuse.candidates import Candidates, find_candidates
from xmodal_kedro.retrieval.metric_names import parse
from xmodal_kedro.retrieval.metrics import entries
from xmodal_kedro.retrieval.scores import FP32_ROUNDING, ScoreSource
from xmodal_kedro.retrieval.workers import side_by_side

PAIRS_AT_ONCE = 1 << 21  # of candidates that are sorted out together
BLOCK = 1 << 13  # pairs whose differences lie side by side
TOGETHER = 50  # at once in a thread: their products with the differences of a block fit the cache
NEAREST = 4  # times K: candidates that are asked whether they lie above whatever is on no list


@dataclass(frozen=True, eq=False)
class DevPart:
    """One group of the dev split.

    Attributes:
        sources: Member name to its [N, M] scores, normalised already; the same members in the same order in every part.
        relevance: [N, M] sparse.
        clusters: [N] int; identical queries share a number, and count as one draw in intervals. None: all differ.
    """

    sources: Mapping[str, ScoreSource]
    relevance: sparse.sparray | sparse.spmatrix
    clusters: np.ndarray | None = None


class Outcome(NamedTuple):
    """Of T trials: the metric's mean over the judged queries, and the share of them whose top K is certain."""

    value: np.ndarray
    certain: np.ndarray


class Trials:
    """Judges mixtures on dev by their candidates."""

    def __init__(self, parts: Sequence[DevPart], metric: str, candidates: int) -> None:
        """Find the candidates, and the pairs of them that any weights can tell apart.

        Args:
            parts: Of dev; the metric is the mean over the queries of all, each within its own.
            metric: One with a cut-off.
            candidates: Length of each member's list; at least the cut-off is taken.

        Raises:
            ValueError: The metric has no cut-off, or no query of dev can be judged.
        """
        self.kind, self.cutoff = parse(metric)
        if self.cutoff == 0:
            raise ValueError(f"weights are searched on metrics with a cut-off such as map_at_10, not on {metric}.")
        found = [_Part(part, max(candidates, self.cutoff), self.cutoff) for part in parts]
        self._judged = sum(int(part.times.sum()) for part in found)
        if not self._judged:
            raise ValueError("no query of dev has a relevant item: weights cannot be searched.")
        self._relevant = np.concatenate([part.relevant for part in found])  # [Q]
        self._times = np.concatenate([part.times for part in found])  # [Q] how many queries each stands for
        self._query = _joined([part.query_of for part in found], [len(part.times) for part in found])  # [R]
        self._above = np.concatenate([part.above for part in found])  # [Q] candidates that are always above the rest
        items = len(self._query)
        self._base = np.concatenate([part.base for part in found], axis=1)  # [2, R]: others, relevant ones
        # segments: others against each relevant item, relevant ones against it, candidates against what is on no list
        shifts = np.cumsum([0, *(len(part.query_of) for part in found)])
        rests = np.cumsum([0, *(len(part.times) for part in found)])
        segments = []
        for part, shift, rest in zip(found, shifts, rests, strict=False):
            for kind, start in enumerate((shift, items + shift, 2 * items + rest)):
                segments.append(part.pairs[kind]._replace(segment=part.pairs[kind].segment + start))
        pairs = _Pairs(*(np.concatenate(column, axis=-1) for column in zip(*segments, strict=True)))
        self._counts = _Counts(pairs, 2 * items + len(self._times))

    def judge(self, weights: np.ndarray) -> Outcome:
        """Judge mixtures [T, S]; each row of weights sums to 1, none negative."""
        counts = self._counts.of(np.asarray(weights, dtype=np.float64))  # [T, segments]
        items = len(self._query)
        among = 1 + self._base[1] + counts[:, items : 2 * items]  # place among the relevant items
        place = np.minimum(among + self._base[0] + counts[:, :items], self.cutoff + 1)
        among = np.minimum(among, self.cutoff + 1)
        certain = (self._above + counts[:, 2 * items :] >= self.cutoff) @ self._times / self._judged
        gain = self._gains()[place, among]  # [T, R]
        if self.kind == "map_challenge":
            queries = sparse.csr_array((np.ones(items), (np.arange(items), self._query)), (items, len(self._times)))
            hits = np.asarray((place <= self.cutoff) @ queries)
            return Outcome(np.asarray(gain @ queries) / np.maximum(hits, 1) @ self._times / self._judged, certain)
        return Outcome(gain @ (self._times / self._ideal())[self._query] / self._judged, certain)

    def _gains(self) -> np.ndarray:
        """What a relevant item is worth by its place (rows) and its place among the relevant ones (columns)."""
        place = np.arange(self.cutoff + 2, dtype=np.float64)[:, None]
        among = np.arange(self.cutoff + 2, dtype=np.float64)[None, :]
        inside = (place >= 1) & (place <= self.cutoff)
        if self.kind == "recall":
            return inside * (among == 1.0)
        if self.kind == "ndcg":
            return inside / np.log2(1.0 + np.maximum(place, 1.0)) + 0.0 * among
        return inside * among / np.maximum(place, 1.0)

    def _ideal(self) -> np.ndarray:
        """[Q] what the gains of a query are divided by."""
        within = np.clip(self._relevant, 1, self.cutoff)
        if self.kind == "ndcg":
            return np.cumsum(1.0 / np.log2(np.arange(2, self.cutoff + 2)))[within - 1]
        return within.astype(np.float64) if self.kind == "map" else np.ones(len(within))


class _Pairs(NamedTuple):
    """Pairs of rivals [S, P] and [S, P], whether a tie counts [P], and the segment that each is counted in [P]."""

    left: np.ndarray
    right: np.ndarray
    tie: np.ndarray
    segment: np.ndarray


class _Part:
    """One group: its distinct queries that can be judged, relevant candidates, and the pairs that weights decide."""

    def __init__(self, part: DevPart, size: int, cutoff: int) -> None:
        found = find_candidates(list(part.sources.values()), size)
        truth = sparse.csr_array(part.relevance, dtype=bool)
        right = entries(truth, found.queries, found.items)
        relevant = np.diff(truth.indptr)
        first, times = _distinct(found, right, relevant)
        self.times, self.relevant = times.astype(np.float64), relevant[first]
        chosen = np.zeros(len(relevant), dtype=bool)
        chosen[first] = True
        wanted = np.flatnonzero(right & chosen[found.queries])
        number = np.zeros(len(relevant), dtype=np.int64)
        number[first] = np.arange(len(first))
        base = np.zeros((2, len(wanted)), dtype=np.int64)
        pairs: list[list[_Pairs]] = [[], [], []]
        nothing = _Pairs(*(np.zeros((len(found.scores), 0)),) * 2, np.zeros(0, bool), np.zeros(0, np.int64))
        for item, rival in _rivals(found, wanted):
            left, target = found.scores[:, rival], wanted[item]
            tie = ~right[rival] | (rival < target)
            apart = left - found.scores[:, target]
            ahead = np.where(tie, (apart >= 0).all(0), (apart > 0).all(0))
            behind = np.where(tie, (apart < 0).all(0), (apart <= 0).all(0))
            for kind in (0, 1):
                mine = right[rival] == bool(kind)
                base[kind] += np.bincount(item[mine & ahead], minlength=len(wanted))
            open_ = ~ahead & ~behind & (base.sum(0) < cutoff)[item]
            for kind in (0, 1):
                use = open_ & (right[rival] == bool(kind))
                pairs[kind].append(_Pairs(left[:, use], found.scores[:, target[use]], tie[use], item[use]))
        kept = base.sum(0) < cutoff  # the others are never among the first K, and are ahead of nobody who is
        place = np.cumsum(kept) - 1
        for kind in (0, 1):
            joined = _Pairs(*(np.concatenate(c, axis=-1) for c in zip(nothing, *pairs[kind], strict=True)))
            pairs[kind] = [joined._replace(segment=place[joined.segment])]
        self.base = base[:, kept]
        self.query_of = number[found.queries[wanted[kept]]]
        self.above, edge = _above_the_rest(found, first, cutoff)
        self.pairs = [pairs[0][0], pairs[1][0], edge]


class _Counts:
    """Counts, in each segment, the pairs whose left one is ahead; many trials at once."""

    def __init__(self, pairs: _Pairs, segments: int) -> None:
        order = np.argsort(pairs.segment, kind="stable")
        self.left, self.right, self.tie = pairs.left[:, order], pairs.right[:, order], pairs.tie[order]
        lengths = np.bincount(pairs.segment, minlength=segments)
        starts = np.cumsum(lengths) - lengths
        by_length = np.argsort(lengths, kind="stable")
        self.place = np.empty(segments, dtype=np.int64)
        self.place[by_length] = np.arange(segments)
        self.skipped = int((lengths == 0).sum())
        # a difference is divided by the largest of its entries, but not by less than fp64 can tell in the scores
        apart = self.left - self.right
        size = np.maximum(np.abs(self.left).max(0, initial=0.0), np.abs(self.right).max(0, initial=0.0))
        apart /= np.maximum(np.abs(apart).max(0, initial=0.0), 2.0**-28 * size) + np.finfo(np.float64).tiny
        self.blocks: list[tuple[int, np.ndarray, Tensor]] = []  # where it starts, pairs [n, W] or -1, differences
        start = self.skipped
        while start < segments:
            stop = start + 1
            while stop < segments and (stop + 1 - start) * lengths[by_length[stop]] <= BLOCK:
                stop += 1
            chosen = by_length[start:stop]
            width = np.arange(lengths[chosen].max())
            index = np.where(width < lengths[chosen][:, None], starts[chosen][:, None] + width, -1)
            values = np.where(index.ravel() >= 0, apart[:, index.ravel()], -1.0).astype(np.float32)
            self.blocks.append((start, index, torch.from_numpy(values)))
            start = stop

    def of(self, weights: np.ndarray) -> np.ndarray:
        """[T, segments] int64."""
        counts = np.zeros((len(weights), len(self.place)), dtype=np.int64)
        some = [slice(start, start + TOGETHER) for start in range(0, len(weights), TOGETHER)]
        for _ in side_by_side(lambda rows: self._count(weights[rows], counts[rows]), some, torch.device("cpu")):
            pass
        return counts[:, self.place]

    def _count(self, weights: np.ndarray, counts: np.ndarray) -> None:
        """Fill the counts [t, segments], by length of the segments, of a few trials."""
        # a product is wrong by (S + 2) roundings of numbers up to 1 at most; what is less than twice that is in doubt
        scaled = torch.from_numpy(weights / (4 * (weights.shape[1] + 4) * FP32_ROUNDING)).float()
        for start, index, values in self.blocks:
            n, width = index.shape
            signs = (scaled @ values).clamp_(-1.0, 1.0).view(-1, n, width)  # 1: ahead, -1: behind
            found = counts[:, start : start + n]
            found[:] = ((signs.sum(2) + width) * 0.5).round_().long().numpy()
            doubt = torch.linalg.vector_norm(signs, dim=2) < (width - 0.5) ** 0.5
            if bool(doubt.any()):
                trial, segment = (i.numpy() for i in doubt.nonzero(as_tuple=True))
                found[trial, segment] = self._exactly(weights[trial], index[segment])

    def _exactly(self, weights: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Counts [F] of segments with the pairs `index` [F, W] at weights [F, S], by mixtures in fp64."""
        mixed = []
        for side in (self.left, self.right):
            total = np.zeros(index.shape)
            for number, scores in enumerate(side):
                total += weights[:, number, None] * scores[index]
            mixed.append(total)
        ahead = (mixed[0] > mixed[1]) | (self.tie[index] & (mixed[0] == mixed[1]))
        return (ahead & (index >= 0)).sum(1)


def _distinct(found: Candidates, right: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of each set of queries that no mixture can tell apart, of those that can be judged, and its size."""
    seen: dict[bytes, list[int]] = {}
    for query in np.flatnonzero(relevant):
        part = slice(*found.starts[query : query + 2])
        parts = (found.scores[:, part], right[part], found.last[:, query], relevant[query])
        seen.setdefault(b"".join(np.ascontiguousarray(one).tobytes() for one in parts), []).append(int(query))
    return np.array([same[0] for same in seen.values()], dtype=np.int64), np.array(
        [len(same) for same in seen.values()]
    )


def _rivals(found: Candidates, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All candidates of the query of each wanted one but itself, in batches: numbers of the wanted, and candidates."""
    query = found.queries[wanted]
    sizes = found.starts[query + 1] - found.starts[query]
    batch = np.cumsum(sizes) // PAIRS_AT_ONCE
    for number in np.unique(batch):
        chosen = np.flatnonzero(batch == number)
        item = np.repeat(chosen, sizes[chosen])
        within = np.arange(len(item)) - np.repeat(np.cumsum(sizes[chosen]) - sizes[chosen], sizes[chosen])
        rival = found.starts[query[item]] + within
        other = rival != wanted[item]
        yield item[other], rival[other]


def _above_the_rest(found: Candidates, first: np.ndarray, cutoff: int) -> tuple[np.ndarray, _Pairs]:
    """How many candidates of each query [Q] lie above whatever is on no list for all weights, and pairs that may."""
    wanted = min(cutoff, found.size)
    above = np.full(len(first), cutoff)
    left, right, segment = [], [], []
    for number, query in enumerate(first if not found.complete else ()):
        scores = found.scores[:, found.starts[query] : found.starts[query + 1]]
        last = found.last[:, query, None]
        over = scores - last
        always = (over > 0).all(0)
        above[number] = always.sum() + cutoff - wanted
        if always.sum() < wanted:
            spread = np.maximum(over.max(1, keepdims=True), np.finfo(np.float64).tiny)
            best = np.argsort(-np.where(always, -np.inf, (over / spread).sum(0)), kind="stable")[: NEAREST * cutoff]
            best = best[~always[best]]
            left.append(scores[:, best])
            right.append(np.repeat(last, len(best), axis=1))
            segment.append(np.full(len(best), number))
    nothing = np.zeros((len(found.scores), 0))
    both = [np.concatenate([nothing, *side], axis=1) for side in (left, right)]
    owner = np.concatenate([np.zeros(0, np.int64), *segment])
    return above, _Pairs(both[0], both[1], np.zeros(len(owner), bool), owner)


def _joined(numbers: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Numbers of several parts, one after the other, each counted on from where the part before ended."""
    starts = np.cumsum([0, *sizes])
    return np.concatenate([part + start for part, start in zip(numbers, starts, strict=False)])
