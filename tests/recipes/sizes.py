"""How large the data of a twin is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Photos that a layout writes."""

    train: int
    held_out: int  # of val or test


SMALL = Size(train=240, held_out=60)  # for tests
FULL = Size(train=6000, held_out=1000)  # from the command line: what there is, at most
