"""The registry of normalisations: each turns a score source into another, without an N x M matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from xmodal_kedro.retrieval.scores import ScoreSource

COLDEST = 1e-4  # lowest temperature: below it the rounding of a cosine, divided by it, swamps every difference


@dataclass(frozen=True, eq=False)
class Setting:
    """What normalisations may read.

    Attributes:
        temperature: Divides scores before an exponential; at least `COLDEST`.
        neighbours: Of CSLS, at least 1.
        iterations: Of Sinkhorn, at least 1.
        bank: [B, M] scores of other queries, such as captions of train, against the same gallery.
    """

    temperature: float = 0.01
    neighbours: int = 10
    iterations: int = 10
    bank: ScoreSource | None = None


Normalisation = Callable[[ScoreSource, Setting], ScoreSource]


class Entry(NamedTuple):
    """A normalisation and what it asks for.

    Attributes:
        apply: From a source [N, M] to another of the same shape.
        transductive: Whether a query's result depends on the other queries that are ranked with it.
        banked: Whether it reads `Setting.bank`.
    """

    apply: Normalisation
    transductive: bool
    banked: bool


NORMALISATIONS: dict[str, Entry] = {}


def normalisation(
    name: str, *, transductive: bool = False, banked: bool = False
) -> Callable[[Normalisation], Normalisation]:
    """Register a normalisation under the name that configs use; names of transductive ones say so.

    Raises:
        ValueError: The name is taken, or does not end in `_transductive` just where it must.
    """

    def register(function: Normalisation) -> Normalisation:
        if name in NORMALISATIONS:
            raise ValueError(f"the normalisation '{name}' is registered twice.")
        if name.endswith("_transductive") != transductive:
            raise ValueError(f"'{name}' must end in _transductive exactly if it uses the other queries.")
        NORMALISATIONS[name] = Entry(function, transductive, banked)
        return function

    return register


def normalised(source: ScoreSource, name: str, setting: Setting | None = None) -> ScoreSource:
    """The source on the scale of a registered normalisation.

    Args:
        source: [N, M] scores of one member.
        name: `none`, `row_l2`, `zscore`, or another that is registered.
        setting: Its parameters.

    Raises:
        ValueError: The name is not known (all names are listed), a parameter is out of range, or there is no bank
            where one is needed, or one of another gallery.
    """
    setting = setting or Setting()
    if name not in NORMALISATIONS:
        raise ValueError(f"there is no normalisation '{name}'; there are: {', '.join(NORMALISATIONS)}.")
    if not COLDEST <= setting.temperature < math.inf:
        raise ValueError(f"the temperature must be finite and at least {COLDEST}; it is {setting.temperature}.")
    if setting.neighbours < 1 or setting.iterations < 1:
        raise ValueError(
            f"neighbours and iterations must be at least 1; they are {setting.neighbours} and {setting.iterations}."
        )
    entry = NORMALISATIONS[name]
    if name != "none" and source.shape[1] == 0:
        raise ValueError(f"'{name}' cannot be computed: the gallery is empty.")
    if source.shape[0] == 0:
        return source
    if entry.banked and (
        setting.bank is None or setting.bank.shape[1] != source.shape[1] or setting.bank.shape[0] == 0
    ):
        given = "there is none" if setting.bank is None else f"it has shape {setting.bank.shape}"
        raise ValueError(
            f"'{name}' needs a bank of other queries, scored against the same {source.shape[1]} items; {given}."
        )
    return entry.apply(source, setting)
