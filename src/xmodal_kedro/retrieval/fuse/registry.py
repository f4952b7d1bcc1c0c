"""The registry of fusions: each says what it needs to know from dev, and makes one score source of the members'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.fuse.trials import DevPart
from xmodal_kedro.retrieval.scores import ScoreSource

Dev = Callable[[str], Mapping[str, DevPart]]
"""Direction (`t2i`, `i2t`) to the parts of dev by group; ValueError where dev has no pair."""


class Fusion(Protocol):
    """A way to make one of many."""

    def choose(self, names: Sequence[str], dev: Dev, config: FusionConfig) -> dict[str, Any]:
        """What is saved as JSON: `chosen` (searched, learned, equal or given), `weights` that sum to 1, and more.

        Nothing but dev may be looked at, and dev is asked for only where it is needed.
        """
        ...

    def fuse(
        self, sources: Mapping[str, ScoreSource], chosen: Mapping[str, Any], direction: str, config: FusionConfig
    ) -> ScoreSource:
        """The members' normalised scores [N, M] of a slice in a direction as one source, by what was chosen."""
        ...


FUSIONS: dict[str, Fusion] = {}


def fusion(name: str) -> Callable[[type[Fusion]], type[Fusion]]:
    """Register a fusion under the name that configs use.

    Raises:
        ValueError: The name is taken.
    """

    def register(kind: type[Fusion]) -> type[Fusion]:
        if name in FUSIONS:
            raise ValueError(f"the fusion '{name}' is registered twice.")
        FUSIONS[name] = kind()
        return kind

    return register
