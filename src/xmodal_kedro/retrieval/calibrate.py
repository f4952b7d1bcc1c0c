"""What a score is worth: the probability that a query's first place is right, and where to say that there is no match.

The question is "is the first place of this query right?", because that is what a user acts on, each query answers it
once, and dev answers it for every query. What the answer is read from, the evidence, are cosines of the first pair,
one per member: unlike normalised or fused scores they do not change with the gallery around the pair, so that they mean
the same for new data. Gaps to the second place were tried and told right from wrong less well than the cosine itself.

The map is logistic in the evidence and never falls in any of it (Platt 1999, with his targets for few examples). It
has one parameter per member and one more: isotonic regression (pool adjacent violators) has as many as dev has steps,
says 0 or 1 at both ends, knows one score alone, and is worse on few hundred queries (Niculescu-Mizil and Caruana 2005).

Counts that queries with the same text share are counts of fewer draws: the intervals, Clopper and Pearson's, scale them
to the number of distinct texts. Choices are made on dev; val judges them. Every query of dev and val has a right item.
If some of the queries that are served have none, fewer of the accepted are right: `false_alarms` says how often a query
without any right item would be let through, measured by its best wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95  # of bounds (one-sided) and of intervals (two-sided)
BINS = 10  # of the reliability table, with as many queries in each as ties allow


class FirstPlaces(NamedTuple):
    """First places of n queries that have a right item.

    Attributes:
        evidence: [n, F] cosines of the first pair.
        right: [n] bool.
        clusters: [n] int64; queries with the same number are one draw.
        strangers: [n, F] cosines of the best wrong pair, which would be first if nothing were right; NaN without one.
    """

    evidence: np.ndarray
    right: np.ndarray
    clusters: np.ndarray
    strangers: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Right or wrong as 1.0 or 0.0, [n]."""
        return self.right.astype(np.float64)


class Threshold(NamedTuple):
    """Where first places begin to be let through.

    Attributes:
        probability: The lowest that is let through.
        accepted: Queries at or above it.
        precision: Share of these that are right.
        bound: Lower bound of the precision, one-sided, at `CONFIDENCE`.
    """

    probability: float
    accepted: int
    precision: float
    bound: float


@dataclass(frozen=True)
class Calibration:
    """sigmoid(bias + sum of weight x evidence), weights not negative."""

    weights: tuple[float, ...]
    bias: float

    def probability(self, evidence: np.ndarray) -> np.ndarray:
        """Probability [n] that first places with this evidence [n, F] are right; NaN where the evidence is."""
        return special.expit(np.asarray(evidence, np.float64) @ np.array(self.weights) + self.bias)


def fit(evidence: np.ndarray, right: np.ndarray) -> Calibration:
    """Maximum likelihood of Platt's targets, (n+ + 1) / (n+ + 2) for right and 1 / (n- + 2) for wrong.

    Where dev tells nothing apart (all right, all wrong, the same evidence everywhere), all get the same probability.

    Args:
        evidence: [n, F], finite.
        right: [n] bool.

    Raises:
        ValueError: There are no queries, or the evidence of one is not finite.
    """
    if len(right) == 0:
        raise ValueError("there are no first places to calibrate on.")
    evidence = np.asarray(evidence, np.float64)
    if not (finite := np.isfinite(evidence).all(axis=1)).all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"the evidence of first place {row} is {evidence[row].tolist()}: it must be finite numbers.")
    hits = int(right.sum())
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    centre, spread = evidence.mean(axis=0), evidence.std(axis=0)
    varies = spread > 1e-9  # evidence that does not gets no weight
    scale = np.where(varies, spread, 1.0)
    inputs = np.where(varies, (evidence - centre) / scale, 0.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = inputs @ parameters[:-1] + parameters[-1]
        wrong = special.expit(logits) - targets
        gradient = np.append(inputs.T @ wrong, wrong.sum()) / len(targets)
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits)), gradient

    start = np.append(np.zeros(inputs.shape[1]), special.logit(targets.mean()))
    bounds = [(0.0, None)] * inputs.shape[1] + [(None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = found[:-1] / scale
    return Calibration(tuple(float(w) for w in weights), float(found[-1] - weights @ centre))


def choose_threshold(
    probability: np.ndarray, right: np.ndarray, clusters: np.ndarray, precision: float
) -> Threshold | None:
    """The lowest probability above which the precision is at least `precision`, with `CONFIDENCE`.

    The bound holds for one threshold; the lowest of many that reach it is a little too good. That is what val is for.

    Args:
        probability: [n] of first places.
        right: [n] bool.
        clusters: [n] int64; queries with the same number are one draw.
        precision: Between 0 and 1.

    Returns:
        None where no threshold reaches it.
    """
    if len(probability) == 0:
        return None
    order = np.argsort(-probability, kind="stable")
    ordered, hits = probability[order], np.cumsum(right[order])
    accepted = np.arange(1, len(order) + 1)
    first_seen = np.zeros(len(order), bool)
    first_seen[np.unique(clusters[order], return_index=True)[1]] = True
    bounds = lower_bound(hits, accepted, np.cumsum(first_seen), CONFIDENCE)
    whole = np.append(ordered[1:] < ordered[:-1], True)  # never half of those that tie
    reached = np.flatnonzero(whole & (bounds >= precision))
    if len(reached) == 0:
        return None
    last = int(reached[-1])
    return Threshold(float(ordered[last]), int(accepted[last]), float(hits[last] / accepted[last]), float(bounds[last]))


def lower_bound(hits: np.ndarray, total: np.ndarray, draws: np.ndarray, confidence: float) -> np.ndarray:
    """One-sided lower bound of Clopper and Pearson for shares `hits / total` of which only `draws` are independent."""
    hits, total, draws = (np.asarray(count, np.float64) for count in (hits, total, draws))
    hits = hits * draws / np.maximum(total, 1)
    with np.errstate(invalid="ignore"):
        return np.where(hits > 0, stats.beta.ppf(1.0 - confidence, hits, draws - hits + 1.0), 0.0)


def interval(hits: float, total: int, draws: int) -> tuple[float, float]:
    """Two-sided interval of Clopper and Pearson at `CONFIDENCE`; NaN without counts."""
    if total == 0:
        return np.nan, np.nan
    side = (1.0 + CONFIDENCE) / 2.0
    low = float(lower_bound(np.array(hits), np.array(total), np.array(draws), side))
    return low, 1.0 - float(lower_bound(np.array(total - hits), np.array(total), np.array(draws), side))


def reliability(probability: np.ndarray, found: FirstPlaces, bins: int = BINS) -> list[dict[str, float]]:
    """What was said against what came true, in bins of about as many queries; equal probabilities share a bin.

    Returns:
        Rows `queries, probability` (the mean of what was said), `right` (the share that was), `right_low, right_high`.
    """
    edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins)) if len(probability) else np.empty(0)
    place = np.searchsorted(edges, probability, side="right")
    rows = []
    for number in np.unique(place):
        inside = place == number
        hits, total = int(found.right[inside].sum()), int(inside.sum())
        low, high = interval(hits, total, len(np.unique(found.clusters[inside])))
        said = float(probability[inside].mean())
        row = {"queries": total, "probability": said, "right": hits / total, "right_low": low, "right_high": high}
        rows.append(row)
    return rows


def calibration_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error: the mean over queries of how far their bin is off."""
    total = sum(row["queries"] for row in rows)
    return sum(row["queries"] * abs(row["probability"] - row["right"]) for row in rows) / max(1, total)


def judged(calibration: Calibration, threshold: Threshold | None, found: FirstPlaces) -> dict[str, float]:
    """How well it does on first places; what only a threshold has is left out without one.

    Returns:
        `queries`, `accuracy` (share of first places that are right), `calibration_error`, `brier`; and of the
        threshold `accepted`, `coverage` (share that is let through), `precision` (share of these that are right) and
        `false_alarms` (share that would be let through had the query no right item), each share with `_low`, `_high`.
    """
    said = calibration.probability(found.evidence)
    rows = reliability(said, found)
    result: dict[str, float] = {
        "queries": len(said),
        "accuracy": float(found.truth.mean()),
        "calibration_error": calibration_error(rows),
        "brier": float(((said - found.truth) ** 2).mean()),
    }
    if threshold is None:
        return result
    through = said >= threshold.probability
    strangers = calibration.probability(found.strangers)
    known = ~np.isnan(strangers)
    shares = {
        "coverage": (through, np.ones(len(said), bool)),
        "precision": (found.right & through, through),
        "false_alarms": (known & (strangers >= threshold.probability), known),
    }
    result["accepted"] = int(through.sum())
    for name, (hits, among) in shares.items():
        count, total = int(hits.sum()), int(among.sum())
        low, high = interval(count, total, len(np.unique(found.clusters[among])))
        result |= {name: count / total, f"{name}_low": low, f"{name}_high": high} if total else {}
    return result


def calibrate(
    dev: FirstPlaces, val: FirstPlaces | None, members: list[str], precision: float
) -> dict[str, Any]:  # ready for JSON
    """Fit on dev, choose the threshold there, and judge both; the reliability table is of val, where there is one.

    Returns:
        `weights` per member, `bias`, `asked` (the precision), `threshold` (none where dev never reaches it; `cosine`
        is the same threshold as a score, where there is one member), `dev`, `val` (see `judged`), `reliability`, and
        `note` where the precision is not reached: on dev by any threshold, or on val by the one of dev.
    """
    found = fit(dev.evidence, dev.right)
    said = found.probability(dev.evidence)
    threshold = choose_threshold(said, dev.right, dev.clusters, precision)
    entry: dict[str, Any] = {
        "weights": dict(zip(members, found.weights, strict=True)),
        "bias": found.bias,
        "asked": precision,
        "threshold": None if threshold is None else threshold._asdict(),
        "dev": judged(found, threshold, dev),
    }
    if threshold is not None and len(members) == 1 and found.weights[0] > 0:
        entry["threshold"]["cosine"] = float(dev.evidence[said >= threshold.probability, 0].min())
    judge = dev if val is None else val
    if val is not None:
        entry["val"] = judged(found, threshold, val)
    entry["reliability"] = reliability(found.probability(judge.evidence), judge)
    if note := _note(threshold, entry.get("val"), precision):
        entry["note"] = note
    return entry


def _note(threshold: Threshold | None, val: dict[str, float] | None, precision: float) -> str | None:
    """Where the precision is not reached, in plain words; none where it is."""
    asked = f"{100 * precision:g} %"
    if threshold is None:
        return (
            f"no threshold: dev never reaches a precision of {asked} with {100 * CONFIDENCE:g} % confidence, however "
            "few first places are let through"
        )
    if val is None:
        return None
    if val["accepted"] == 0:
        return f"val does not show a precision of {asked}: the threshold of dev lets none of its first places through"
    if val["precision"] < precision:
        low, high = 100 * val["precision_low"], 100 * val["precision_high"]
        return (
            f"val does not reach a precision of {asked}: of its first places that the threshold of dev lets through "
            f"{100 * val['precision']:.1f} % are right (95 % interval {low:.1f} to {high:.1f})"
        )
    return None
