"""Learned fusion: the probability that a candidate is right, from what the members say about it.

Logistic regression over the union of the members' best C items of each query. The features are, for each member, the
normalised score, the logarithm of the place on its list (C + 1 beyond it), and the margin to the query's best. It is
learned on dev alone. The value on dev that is reported comes from cross-fitting: each query is scored by coefficients
that were learned from other queries, and queries that are identical stay together. Candidates come first, by their
probability; items on no list follow in the order of the members' mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.fuse.candidates import Candidates, find_candidates
from xmodal_kedro.retrieval.fuse.listed import listed
from xmodal_kedro.retrieval.fuse.registry import Dev, fusion
from xmodal_kedro.retrieval.fuse.trials import DevPart
from xmodal_kedro.retrieval.fuse.weights import full_values, gains, member_names, mixture_values
from xmodal_kedro.retrieval.metrics import entries
from xmodal_kedro.retrieval.scores import ScoreSource

FOLDS = 5
PENALTY = 1e-4  # on the squares of the coefficients of standardised features, beside the mean loss
FEATURES = ("score", "log_place", "margin")


@dataclass(frozen=True)
class Logistic:
    """Coefficients of S members, [3, S] in the order of `FEATURES`, for features that are shifted and scaled."""

    shift: list[list[float]]
    scale: list[list[float]]
    coefficients: list[list[float]]
    intercept: float

    def probability(self, found: Candidates) -> np.ndarray:
        """[E], above zero."""
        total = np.full(len(found.queries), self.intercept)
        features = zip(features_of(found), self.shift, self.scale, self.coefficients, strict=True)
        for kind, shifts, scales, factors in features:
            for values, shift, scale, factor in zip(kind, shifts, scales, factors, strict=True):
                total += (values - shift) * (scale * factor)
        return np.maximum(expit(total), np.finfo(np.float64).tiny)


@fusion("learned")
class Learned:
    """Coefficients of both directions; `weights` are those of the mixture that what is on no list follows."""

    def choose(self, names: Sequence[str], dev: Dev, config: FusionConfig) -> dict[str, Any]:
        """Learn on dev; `value` and `gains` are cross-fitted."""
        honest, parts = crossfitted(dev(config.direction), config.metric, config.candidates)
        equal = [1 / len(names)] * len(names)
        simple = {"equal": mixture_values(parts, config.metric, equal)}
        alone = {name: mixture_values(parts, config.metric, [float(name == n) for n in names]) for name in names}
        learned = {way: fit(list(dev(way).values()), config.candidates) for way in ("t2i", "i2t")}
        return {
            "chosen": "learned",
            "split": "dev",
            "weights": dict(zip(names, equal, strict=True)),
            "value": float(honest.mean()),
            "alone": {name: float(values.mean()) for name, values in alone.items()},
            "gains": [asdict(gain) for gain in gains(honest, simple | (alone if len(names) > 1 else {}), parts)],
            "coefficients": {way: {"members": list(names), **asdict(model)} for way, model in learned.items()},
        }

    def fuse(
        self, sources: Mapping[str, ScoreSource], chosen: Mapping[str, Any], direction: str, config: FusionConfig
    ) -> ScoreSource:
        """Candidates by their probability."""
        saved = dict(chosen["coefficients"][direction])
        ordered = [sources[name] for name in saved.pop("members")]  # coefficients stand in this order
        found = find_candidates(ordered, config.candidates)
        return _behind(ordered, found, Logistic(**saved).probability(found))


def fit(parts: Sequence[DevPart], candidates: int) -> Logistic:
    """Learn from the judged queries of all parts."""
    return _solve(_examples(part, candidates) for part in parts)


def crossfitted(dev: Mapping[str, DevPart], metric: str, candidates: int) -> tuple[np.ndarray, Mapping[str, DevPart]]:
    """Values [n] of the judged queries of dev, each by coefficients that were learned without it; and dev itself.

    Raises:
        ValueError: There are not two judged queries that differ.
    """
    member_names(dev)
    examples = {name: _examples(part, candidates) for name, part in dev.items()}
    folds = _folds(dev)
    values = {name: np.zeros(len(one.found.queries)) for name, one in examples.items()}
    for fold in range(FOLDS):
        apart = {name: folds[name][one.found.queries] == fold for name, one in examples.items()}
        if not any(part.any() for part in apart.values()):
            continue
        model = _solve(one.where(~apart[name]) for name, one in examples.items())
        for name, one in examples.items():
            values[name][apart[name]] = model.probability(one.found)[apart[name]]
    fused = {
        name: _behind(list(part.sources.values()), examples[name].found, values[name]) for name, part in dev.items()
    }
    return full_values(dev, metric, fused), dev


def features_of(found: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, logarithm of the place and margin to the query's best, each [S, E]."""
    return found.scores, np.log(found.ranks), found.best[:, found.queries] - found.scores


@dataclass(frozen=True, eq=False)
class _Examples:
    """Candidates of a part, which of them are right [E], and which may be learned from [E]."""

    found: Candidates
    right: np.ndarray
    use: np.ndarray

    def where(self, chosen: np.ndarray) -> _Examples:
        return _Examples(self.found, self.right, self.use & chosen)


def _examples(part: DevPart, candidates: int) -> _Examples:
    found = find_candidates(list(part.sources.values()), candidates)
    judged = np.asarray(part.relevance.sum(axis=1)).ravel() > 0
    return _Examples(found, entries(part.relevance, found.queries, found.items), judged[found.queries])


def _solve(examples: Any) -> Logistic:
    """Penalised maximum likelihood by L-BFGS, from zero: no randomness."""
    features, truth = [], []
    for one in examples:
        features.append(np.concatenate(features_of(one.found))[:, one.use])
        truth.append(one.right[one.use])
    x, y = np.concatenate(features, axis=1), np.concatenate(truth).astype(np.float64)  # [F, E], [E]
    if x.shape[1] == 0:
        raise ValueError(
            "there are not two different queries of dev with a relevant item, which a learned fusion needs at least: "
            "set ensemble.fusion.method to weighted or reciprocal_rank"
        )
    shift, spread = x.mean(1), x.std(1)
    scale = 1.0 / np.where(spread > 0.0, spread, 1.0)
    x = (x - shift[:, None]) * scale[:, None]

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logits = theta[:-1] @ x + theta[-1]
        error = expit(logits) - y
        penalty = PENALTY * theta[:-1]
        value = np.logaddexp(0.0, logits).mean() - (y * logits).mean() + 0.5 * (penalty @ theta[:-1])
        return float(value), np.append(x @ error / len(y) + penalty, error.mean())

    found = minimize(loss, np.zeros(len(x) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    rows = [array.reshape(len(FEATURES), -1).tolist() for array in (shift, scale, found[:-1])]
    return Logistic(rows[0], rows[1], rows[2], float(found[-1]))


def _folds(dev: Mapping[str, DevPart]) -> dict[str, np.ndarray]:
    """Fold [N] of each query; identical queries share theirs."""
    found = {}
    for name, part in dev.items():
        n = part.relevance.shape[0]
        cluster = np.arange(n) if part.clusters is None else np.unique(part.clusters, return_inverse=True)[1]
        shuffled = np.random.default_rng(0).permutation(int(cluster.max(initial=-1)) + 1)
        found[name] = shuffled[cluster] % FOLDS
    return found


def _behind(sources: list[ScoreSource], found: Candidates, values: np.ndarray) -> ScoreSource:
    tiny = np.finfo(np.float64).tiny
    return listed(sources, [1 / len(sources)] * len(sources), found, np.maximum(values, tiny))
