"""The weighted sum of the members' normalised scores; weights are equal, given, or searched on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.fuse.registry import Dev, fusion
from xmodal_kedro.retrieval.fuse.weights import search_weights
from xmodal_kedro.retrieval.scores import ScoreSource, WeightedScores


@fusion("weighted")
class Weighted:
    """Equal weights are the mean."""

    def choose(self, names: Sequence[str], dev: Dev, config: FusionConfig) -> dict[str, Any]:
        """Weights, and of a search what it found."""
        return choose_weights_of(names, dev, config)

    def fuse(
        self, sources: Mapping[str, ScoreSource], chosen: Mapping[str, Any], direction: str, config: FusionConfig
    ) -> ScoreSource:
        """The mixture; members of weight 0 cost nothing."""
        return WeightedScores(list(sources.values()), [chosen["weights"][name] for name in sources])


def choose_weights_of(names: Sequence[str], dev: Dev, config: FusionConfig) -> dict[str, Any]:
    """Weights as the config gives them, or searched on dev.

    Returns:
        `chosen` and `weights`; of a search also `split` (always dev), `search`, `value`, `alone` (the same metric of
        each member by itself), `gains` and `trials`.

    Raises:
        ValueError: Weights are given for members that do not exist, or for none of these.
    """
    if config.weights == "equal":
        return {"chosen": "equal", "weights": {name: 1 / len(names) for name in names}}
    if isinstance(config.weights, dict):
        total = sum(config.weights.get(name, 0.0) for name in names)
        if set(config.weights) - set(names) or total == 0.0:
            raise ValueError(
                f"ensemble.fusion.weights is {config.weights}: it needs weights of {', '.join(names)}, one of them "
                "above zero; members that it leaves out get 0"
            )
        return {"chosen": "given", "weights": {n: config.weights.get(n, 0.0) / total for n in names}}
    found = search_weights(
        dev(config.direction), config.metric, method=config.search, step=config.step, candidates=config.candidates
    )
    return {
        "chosen": "searched",
        "split": "dev",
        "search": config.search,
        "weights": found.weights,
        "value": found.value,
        "alone": found.alone,
        "gains": [asdict(gain) for gain in found.gains],
        "trials": len(found.trace),
    }
