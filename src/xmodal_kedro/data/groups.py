"""Settings per group name groups of the data; a name that is none, but nearly one, is most likely misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def misspelt_groups(named: Mapping[str, Iterable[str]], there: Iterable[str]) -> list[str]:
    """Find names of groups that look like misspellings.

    The base names groups that other data need not have, so a name that resembles none of those there is left alone.

    Args:
        named: Group names by the key that holds them.
        there: The groups of the data.

    Returns:
        A sentence per key and name: what is unknown, what may be meant, and what there is.
    """
    groups = sorted(set(there))
    return [
        f"{key} names the group '{name}', which no row has, so it does nothing; did you mean '{close[0]}'? The groups "
        f"are {', '.join(groups)}"
        for key, names in named.items()
        for name in names
        if name not in groups and (close := difflib.get_close_matches(name, groups, n=1))
    ]
