"""Weights of the members of a mixture, searched on dev: a coordinate search over the simplex, re-checked in full.

A trial costs no matrix product. Every member's exact best C items per query are taken once; their union is re-scored by
every member, and a trial is a weighted sum over these candidates. An item outside all lists scores at most the weighted
sum of the last scores of the lists (Fagin, Lotem, Naor, JCSS 66, 2003), so for each query it is known whether the top K
of a trial is certain. In the end the starts and what they led to are compared over the full gallery, so that the result
is never worse on dev than equal weights or a member alone; the value that is reported is the full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from xmodal_kedro.retrieval.metric_names import parse
from xmodal_kedro.retrieval.metrics import entries, from_ranks, per_query
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource, WeightedScores

Weights = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class DevPart:
    """One group of the dev split.

    Attributes:
        sources: Member name to its [N, M] scores, normalised already; the same members in the same order in every part.
        relevance: [N, M] sparse.
    """

    sources: Mapping[str, ScoreSource]
    relevance: sparse.sparray | sparse.spmatrix


@dataclass(frozen=True, eq=False)
class WeightSearch:
    """What a search found.

    Attributes:
        weights: Member to weight; they sum to 1.
        value: Of the metric on dev, over the full gallery.
        trace: One row per trial: `start`, `trial`, `value`, `certain` (share of queries whose top K is), `better`
            (whether it became the start's best), and a column `weight.<member>` for each member.
    """

    weights: dict[str, float]
    value: float
    trace: pd.DataFrame


def search_weights(
    dev: Mapping[str, DevPart],
    metric: str = "map_at_10",
    *,
    step: float = 0.1,
    candidates: int = 100,
) -> WeightSearch:
    """Weights that maximise a metric on dev; the caller answers for it that dev is nothing else than dev.

    From equal weights, and from each member alone, weight moves in steps from one member to another as long as that
    helps; all moves are tried before the best is taken. Equal values prefer the more equal weights. Deterministic.

    Args:
        dev: Group name to its part. The metric is the mean over the queries of all groups, each within its own group.
        metric: One with a cut-off: `recall_at_K`, `map_at_K`, `map_at_K_challenge`, `ndcg_at_K`.
        step: Weight that moves at once; less where a member has less.
        candidates: C, at least K.

    Raises:
        ValueError: The metric has no cut-off, the parts differ in members, or no query of dev can be judged.
    """
    cutoff = parse(metric)[1]
    if cutoff == 0:
        raise ValueError(f"weights are searched on metrics with a cut-off such as map_at_10, not on {metric}.")
    if len({tuple(part.sources) for part in dev.values()}) != 1:
        raise ValueError("every group needs the scores of the same members in the same order.")
    members = list(next(iter(dev.values())).sources)
    if not members:
        raise ValueError("there are no members to mix.")
    lists = [_Candidates(part, max(candidates, cutoff), cutoff) for part in dev.values()]
    if not any(part.judged for part in lists):
        raise ValueError("no query of dev has a relevant item: weights cannot be searched.")

    tried: dict[Weights, tuple[float, float]] = {}

    def value_of(weights: Weights) -> tuple[float, float]:
        if weights not in tried:
            tried[weights] = _pooled([part.judge(weights, metric) for part in lists])
        return tried[weights]

    def merit(weights: Weights) -> tuple[float, float]:
        return _merit(value_of(weights)[0], weights)

    trace: list[dict[str, object]] = []

    def record(start: str, trials: Sequence[Weights], better: Weights | None) -> None:
        for weights in trials:
            value, certain = value_of(weights)
            row = {"start": start, "trial": len(trace), "value": value, "certain": certain, "better": weights == better}
            trace.append(row | {f"weight.{name}": share for name, share in zip(members, weights, strict=True)})

    finals: list[Weights] = []
    for start, best in _starts(members):
        record(start, [best], best)
        while moves := _moves(best, step):
            leader = max(moves, key=merit)
            helps = merit(leader) > merit(best)
            record(start, moves, leader if helps else None)
            if not helps:
                break
            best = leader
        finals.append(best)
    finalists = dict.fromkeys([*finals, *(weights for _, weights in _starts(members))])
    in_full = {
        weights: float(np.concatenate([_in_full(part, weights, metric) for part in dev.values()]).mean())
        for weights in finalists
    }
    winner = max(in_full, key=lambda weights: _merit(in_full[weights], weights))
    return WeightSearch(
        weights=dict(zip(members, winner, strict=True)),
        value=in_full[winner],
        trace=pd.DataFrame(trace),
    )


class _Candidates:
    """The union of the members' best items of each query, scored by every member."""

    def __init__(self, part: DevPart, size: int, cutoff: int) -> None:
        sources = list(part.sources.values())
        n, m = sources[0].shape
        self.cutoff = min(cutoff, m)
        best = [rank(source, None, min(size, m)) for source in sources]
        self.complete = size >= m
        # the last score of each list bounds whatever is not on it
        ends = [(torch.arange(n), torch.from_numpy(b.top_rows[:, -1])) for b in best]
        self.last = torch.stack([_exact(source, *end)[:, None] for source, end in zip(sources, ends, strict=True)])
        union = np.sort(np.concatenate([b.top_rows for b in best], axis=1), axis=1)  # [N, S * C]
        again = np.zeros(union.shape, dtype=bool)
        again[:, 1:] = union[:, 1:] == union[:, :-1]
        truth = sparse.csr_array(part.relevance, dtype=bool)
        queries = np.repeat(np.arange(n), union.shape[1])
        right = entries(truth, queries, union.ravel()).reshape(union.shape) & ~again
        # others first: a stable sort by score then puts relevant items behind those they tie with
        order = np.argsort(right, axis=1, kind="stable")
        union, again, right = (np.take_along_axis(a, order, axis=1) for a in (union, again, right))
        self.right = torch.from_numpy(right)
        self.relevant = np.diff(truth.indptr)
        self.judged = int((self.relevant > 0).sum())
        rows = torch.from_numpy(queries), torch.from_numpy(union.ravel())
        scores = torch.stack([_exact(source, *rows).view(union.shape) for source in sources])
        self.scores = scores.masked_fill_(torch.from_numpy(again), -torch.inf)  # [S, N, S * C] fp64

    def judge(self, weights: Weights, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of the judged queries, and whether the top of each is certain."""
        used = [number for number, weight in enumerate(weights) if weight > 0.0]
        mixed = self._mix(self.scores, weights, used)  # [N, S * C]
        top, order = mixed.sort(dim=1, descending=True, stable=True)
        hits = self.right.gather(1, order[:, : self.cutoff]).numpy()
        edge = self._mix(self.last, weights, used)[:, 0]
        certain = (
            torch.full((len(top),), True) if self.complete else top[:, self.cutoff - 1] > edge + 1e-12 * edge.abs()
        )
        query, place = np.nonzero(hits)
        judged = self.relevant > 0
        return from_ranks(metric, query, place + 1, self.relevant)[judged], certain.numpy()[judged]

    @staticmethod
    def _mix(scores: Tensor, weights: Weights, used: Sequence[int]) -> Tensor:
        return sum((scores[number] * weights[number] for number in used), torch.zeros(()))


def _exact(source: ScoreSource, queries: Tensor, gallery: Tensor) -> Tensor:
    return source.pairs(queries.to(source.device), gallery.to(source.device)).cpu()


def _starts(members: Sequence[str]) -> list[tuple[str, Weights]]:
    """Equal weights, then each member alone."""
    size = len(members)
    alone = [(name, tuple(float(name == other) for other in members)) for name in members]
    return [("equal", tuple([1.0 / size] * size)), *(alone if size > 1 else [])]


def _merit(value: float, weights: Weights) -> tuple[float, float]:
    """Higher is better; of equal values (but for rounding) the more equal weights."""
    return round(value, 12), -round(sum(w * w for w in weights), 12)


def _moves(weights: Weights, step: float) -> list[Weights]:
    """Every way to hand `step` (or all there is) from one member to another."""
    found = []
    for giver, has in enumerate(weights):
        for taker in range(len(weights)):
            if has > 0.0 and taker != giver:
                moved = list(weights)
                share = min(step, has)
                moved[giver], moved[taker] = round(has - share, 12), round(weights[taker] + share, 12)
                found.append(tuple(moved))
    return found


def _pooled(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    values, certain = (np.concatenate(column) for column in zip(*parts, strict=True))
    return float(values.mean()), float(certain.mean())


def _in_full(part: DevPart, weights: Weights, metric: str) -> np.ndarray:
    ranking = rank(WeightedScores(list(part.sources.values()), weights), part.relevance, 0)
    values = per_query(metric, ranking)
    return values[~np.isnan(values)]
