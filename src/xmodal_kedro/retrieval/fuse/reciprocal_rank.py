"""Reciprocal rank fusion: only the places count, so that no scale of scores has to be right.

Cormack, Clarke, Buettcher: Reciprocal rank fusion outperforms Condorcet and individual rank learning methods (SIGIR
2009): the score of an item is the sum over members of 1 / (60 + place). Here the sum may be weighted, and a member adds
nothing for items beyond its best C. Equal scores share the best place. Items on no list follow in the order of the
members' weighted scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.fuse.candidates import Candidates, find_candidates
from xmodal_kedro.retrieval.fuse.listed import listed
from xmodal_kedro.retrieval.fuse.registry import Dev, fusion
from xmodal_kedro.retrieval.fuse.trials import DevPart
from xmodal_kedro.retrieval.fuse.weighted import choose_weights_of
from xmodal_kedro.retrieval.scores import ScoreSource

OFFSET = 60  # the paper's k, fixed in a pilot study; "the choice is not critical"


@fusion("reciprocal_rank")
class ReciprocalRank:
    """A search over the weights tries sums of reciprocal ranks."""

    def choose(self, names: Sequence[str], dev: Dev, config: FusionConfig) -> dict[str, Any]:
        """Weights, as for a weighted sum."""

        def of_places(direction: str) -> dict[str, DevPart]:
            return {
                group: replace(part, sources={n: _alone(s, config.candidates) for n, s in part.sources.items()})
                for group, part in dev(direction).items()
            }

        return choose_weights_of(names, of_places, config)

    def fuse(
        self, sources: Mapping[str, ScoreSource], chosen: Mapping[str, Any], direction: str, config: FusionConfig
    ) -> ScoreSource:
        """Candidates of the members that have a weight, by the sum of their reciprocal places."""
        used = {name: source for name, source in sources.items() if chosen["weights"][name] > 0.0}
        return reciprocal_rank_scores(
            list(used.values()), [chosen["weights"][name] for name in used], config.candidates
        )


def reciprocal_rank_scores(sources: list[ScoreSource], weights: list[float], candidates: int) -> ScoreSource:
    """Sum over members of weight / (60 + place); weights above zero."""
    found = find_candidates(sources, candidates)
    values = np.zeros(len(found.queries))
    for weight, places in zip(weights, reciprocal_places(found), strict=True):
        values += weight * places
    return listed(sources, weights, found, values)


def reciprocal_places(found: Candidates) -> np.ndarray:
    """1 / (60 + place) of each member [S, E]; 0 beyond its list."""
    return np.where(found.ranks <= found.size, 1.0 / (OFFSET + found.ranks), 0.0)


def _alone(source: ScoreSource, candidates: int) -> ScoreSource:
    """What one member adds to the sum."""
    found = find_candidates([source], candidates)
    return listed([source], [1.0], found, reciprocal_places(found)[0], tail=False)
