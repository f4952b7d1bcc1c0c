"""Weights of the members of a mixture, searched on dev and re-checked in full.

Two searches, registered by name. Both try mixtures by their candidates (see `trials`), all those of a step at once. In
the end what they led to, equal weights and each member alone are compared over the full gallery, so that the result is
never worse on dev than any of these; the value that is reported is the full one, and so are the gains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from xmodal_kedro.retrieval.bootstrap import Difference, paired_difference
from xmodal_kedro.retrieval.fuse.trials import DevPart, Trials
from xmodal_kedro.retrieval.metrics import per_query
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource, WeightedScores

Weights = tuple[float, ...]
RESAMPLES = 2000  # behind the intervals of gains
BAG = 50  # members that the greedy search draws: weights are multiples of 1 / 50, or of less


@dataclass(frozen=True)
class Gain:
    """What a fusion gains on dev over something simpler, paired by query: mean, 95 % interval and p.

    Weights that were searched on dev fit dev a little better than other queries; what was learned by cross-fitting
    does not. `over` names the rival: a member, or `equal` weights.
    """

    over: str
    value: float
    low: float
    high: float
    p: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, eq=False)
class WeightSearch:
    """What a search found.

    Attributes:
        weights: Member to weight; they sum to 1.
        value: Of the metric on dev, over the full gallery.
        alone: The same of each member by itself.
        gains: Over the best single member, and over equal weights; none where there is one member.
        trace: One row per trial: `start`, `trial`, `value`, `certain` (share of queries whose top K is known to be),
            `better` (whether it was taken), and a column `weight.<member>` for each member.
    """

    weights: dict[str, float]
    value: float
    alone: dict[str, float]
    gains: list[Gain]
    trace: pd.DataFrame


@dataclass(eq=False)
class Trace:
    """Mixtures tried so far; asks `Trials` for those that are new, together."""

    trials: Trials
    tried: dict[Weights, tuple[float, float]] = field(default_factory=dict)
    rows: list[tuple[str, Weights, bool]] = field(default_factory=list)

    def values(self, mixtures: Sequence[Weights]) -> list[float]:
        """The metric at each."""
        if new := [weights for weights in dict.fromkeys(mixtures) if weights not in self.tried]:
            value, certain = self.trials.judge(np.array(new))
            self.tried |= dict(zip(new, zip(value.tolist(), certain.tolist(), strict=True), strict=True))
        return [self.tried[weights][0] for weights in mixtures]

    def best(self, mixtures: Sequence[Weights]) -> Weights:
        """The best; of equals the more equal weights, then the first."""
        self.values(mixtures)
        return max(mixtures, key=lambda weights: merit(self.tried[weights][0], weights))

    def record(self, start: str, mixtures: Sequence[Weights], taken: Weights | None) -> None:
        """Remember a step."""
        self.values(mixtures)
        self.rows += [(start, weights, weights == taken) for weights in mixtures]

    def table(self, members: Sequence[str]) -> pd.DataFrame:
        """As `WeightSearch.trace`."""
        return pd.DataFrame(
            [
                {"start": start, "trial": number}
                | dict(zip(("value", "certain"), self.tried[weights], strict=True))
                | {"better": taken}
                | {f"weight.{name}": share for name, share in zip(members, weights, strict=True)}
                for number, (start, weights, taken) in enumerate(self.rows)
            ]
        )


Search = Callable[[Trace, Sequence[str], float], list[Weights]]
"""Tries mixtures of the named members, with a step; gives those that it ended with."""

SEARCHES: dict[str, Search] = {}


def search(name: str) -> Callable[[Search], Search]:
    """Register a search under the name that configs use."""

    def register(function: Search) -> Search:
        if name in SEARCHES:
            raise ValueError(f"the search '{name}' is registered twice.")
        SEARCHES[name] = function
        return function

    return register


@search("coordinate")
def coordinate(trace: Trace, members: Sequence[str], step: float) -> list[Weights]:
    """From equal weights, and from each member alone, weight moves in steps from one member to another while it helps.

    All moves are tried before the best is taken.
    """
    found = []
    for start, best in _starts(members):
        trace.record(start, [best], best)
        while moves := _moves(best, step):
            leader = trace.best(moves)
            helps = trace.best([best, leader]) != best
            trace.record(start, moves, leader if helps else None)
            if not helps:
                break
            best = leader
        found.append(best)
    return found


@search("greedy")
def greedy(trace: Trace, members: Sequence[str], step: float) -> list[Weights]:
    """Ensemble selection with replacement: a bag takes the member that helps it most, again and again.

    Caruana, Niculescu-Mizil, Crew, Ksikes: Ensemble selection from libraries of models (ICML 2004), sections 2 and 2.1.
    A member's weight is its share of the bag. The bag grows even where nothing helps; the best that it ever was counts.
    The step is not used.
    """
    counts = np.zeros(len(members), dtype=np.int64)
    bags: list[Weights] = []
    for _ in range(BAG if len(members) > 1 else 1):
        grown = [counts + one for one in np.eye(len(members), dtype=np.int64)]
        mixtures = [tuple((bag / bag.sum()).tolist()) for bag in grown]
        taken = trace.best(mixtures)
        trace.record("greedy", mixtures, taken)
        counts = grown[mixtures.index(taken)]
        bags.append(taken)
    return [trace.best(bags)]


def search_weights(
    dev: Mapping[str, DevPart],
    metric: str = "map_at_10",
    *,
    method: str = "coordinate",
    step: float = 0.1,
    candidates: int = 100,
) -> WeightSearch:
    """Weights that maximise a metric on dev; the caller answers for it that dev is nothing else than dev.

    Equal values prefer the more equal weights. Deterministic.

    Args:
        dev: Group name to its part. The metric is the mean over the queries of all groups, each within its own group.
        metric: One with a cut-off: `recall_at_K`, `map_at_K`, `map_at_K_challenge`, `ndcg_at_K`.
        method: Name of a search.
        step: Of the coordinate search: weight that moves at once; less where a member has less.
        candidates: Length of each member's list, at least K.

    Raises:
        ValueError: The search is not known, the metric has no cut-off, the parts differ in members, or no query of dev
            can be judged.
    """
    if method not in SEARCHES:
        raise ValueError(f"there is no search '{method}'; there are: {', '.join(SEARCHES)}.")
    members = member_names(dev)
    trace = Trace(Trials(list(dev.values()), metric, candidates))
    ends = SEARCHES[method](trace, members, step)
    finalists = dict.fromkeys([*ends, *(weights for _, weights in _starts(members))])
    in_full = {weights: mixture_values(dev, metric, weights) for weights in finalists}
    winner = max(in_full, key=lambda weights: merit(float(in_full[weights].mean()), weights))
    simple = {name: in_full[weights] for name, weights in _starts(members)}
    alone = {name: float(simple[name].mean()) for name in members} if len(members) > 1 else {}
    return WeightSearch(
        weights=dict(zip(members, winner, strict=True)),
        value=float(in_full[winner].mean()),
        alone=alone or {members[0]: float(in_full[winner].mean())},
        gains=gains(in_full[winner], simple, dev),
        trace=trace.table(members),
    )


def mixture_values(dev: Mapping[str, DevPart], metric: str, weights: Sequence[float]) -> np.ndarray:
    """A mixture's values [n] of the judged queries of dev, over the full gallery."""
    mixed = {name: WeightedScores(list(part.sources.values()), weights) for name, part in dev.items()}
    return full_values(dev, metric, mixed)


def full_values(dev: Mapping[str, DevPart], metric: str, fused: Mapping[str, ScoreSource]) -> np.ndarray:
    """Values [n] of the judged queries of dev by the fused scores of each part, over the full gallery."""
    values = [per_query(metric, rank(fused[name], part.relevance, 0)) for name, part in dev.items()]
    return np.concatenate([part[~np.isnan(part)] for part in values])


def gains(values: np.ndarray, simple: Mapping[str, np.ndarray], dev: Mapping[str, DevPart]) -> list[Gain]:
    """What a fusion gains over the best single member and over equal weights.

    Args:
        values: [n] of the judged queries.
        simple: The same of `equal` weights and of each member, by name; equal weights alone where there is one member.
        dev: Whose queries they are.
    """
    singles = {name: found for name, found in simple.items() if name != "equal"}
    if not singles:
        return []
    best = max(singles, key=lambda name: float(singles[name].mean()))
    clusters = dev_clusters(dev)
    found: dict[str, Difference] = {
        name: paired_difference(values, simple[name], clusters=clusters, resamples=RESAMPLES)
        for name in (best, "equal")
    }
    return [Gain(name, *difference) for name, difference in found.items()]


def dev_clusters(dev: Mapping[str, DevPart]) -> np.ndarray:
    """[n] cluster of each judged query of dev; those of different groups differ."""
    found: list[np.ndarray] = []
    start = 0
    for part in dev.values():
        judged = np.asarray(part.relevance.sum(axis=1)).ravel() > 0
        own = np.arange(len(judged)) if part.clusters is None else np.asarray(part.clusters)
        found.append(own[judged] + start)
        start += int(own.max(initial=-1)) + 1
    return np.concatenate(found)


def member_names(dev: Mapping[str, DevPart]) -> list[str]:
    """The members of every part.

    Raises:
        ValueError: The parts differ in members, or have none.
    """
    if len({tuple(part.sources) for part in dev.values()}) != 1:
        raise ValueError("every group needs the scores of the same members in the same order.")
    members = list(next(iter(dev.values())).sources)
    if not members:
        raise ValueError("there are no members to mix.")
    return members


def merit(value: float, weights: Weights) -> tuple[float, float]:
    """Higher is better; of equal values (but for rounding) the more equal weights."""
    return round(value, 12), -round(sum(w * w for w in weights), 12)


def _starts(members: Sequence[str]) -> list[tuple[str, Weights]]:
    """Equal weights, then each member alone."""
    size = len(members)
    alone = [(name, tuple(float(name == other) for other in members)) for name in members]
    return [("equal", tuple([1.0 / size] * size)), *(alone if size > 1 else [])]


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
