"""Raw pairs become rows of the pair table: the file found, ids given, the group decided, or the row quarantined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from xmodal_kedro.config.data import GroupRule
from xmodal_kedro.data.paths import Found
from xmodal_kedro.data.quarantine import Entry, build
from xmodal_kedro.data.readers.rows import RawPair, RawRows, Reading, SourceError
from xmodal_kedro.data.readers.track2 import group_of_attributes

PAIR_COLUMNS = ["image_id", "text_id", "path", "text", "group", "attributes", "split", "row", "source"]
NO_GROUP = "row matches no rule of data.groups: add a rule, or set 'group' of the source"


@dataclass(frozen=True)
class Read:
    """Pairs that can be used, the quarantine table of what cannot, and how many rows were seen, good or bad."""

    pairs: pd.DataFrame
    quarantine: pd.DataFrame
    rows: int


def assemble(raw: RawRows, reading: Reading, groups: Sequence[GroupRule]) -> Read:
    """Turn the raw pairs of one source into pairs.

    Raises:
        SourceError: A group rule is no valid pattern.
    """
    bad = list(raw.bad)
    place = _FindImages(reading)
    group_of = _Grouping(reading, groups)
    rows = []
    for pair in raw.pairs:
        name, path, image_id, reason = place(pair)
        if reason is not None:
            bad.append(Entry("row", pair.source, pair.row, path or "", reason))
            continue
        group = group_of(pair, name)
        if group is None:
            bad.append(Entry("row", pair.source, pair.row, (name or pair.text or "")[:80], NO_GROUP))
            continue
        text_id = pair.text_id
        if pair.text is not None and text_id is None:
            text_id = f"{pair.source}:{pair.row}" + ("" if pair.caption is None else f"#{pair.caption}")
        rows.append(
            (image_id, text_id, path, pair.text, group, pair.attributes, reading.source.split, pair.row, pair.source)
        )
    return Read(pair_table(rows), build(bad).drop_duplicates(ignore_index=True), raw.seen)


def pair_table(rows: Iterable[tuple[object, ...]]) -> pd.DataFrame:
    """A pair table with its column types: strings (null allowed), and `row` an integer."""
    frame = pd.DataFrame(list(rows), columns=PAIR_COLUMNS)
    return frame.astype(dict.fromkeys(PAIR_COLUMNS, "str") | {"row": "int64"})


class _Place(NamedTuple):
    """Where the image of a row is; all null for a row without one."""

    name: str | None  # relative to the images folder, with its suffix
    path: str | None
    image_id: str | None
    reason: str | None  # why it cannot be used


class _FindImages:
    """Finds the images of a source; every name is looked up once."""

    def __init__(self, reading: Reading) -> None:
        self._tree = reading.tree
        self._folder = "" if reading.source.images is None else reading.tree.find_folder(reading.source.images).path
        self._found: dict[str, Found] = {}

    def __call__(self, pair: RawPair) -> _Place:
        if pair.path is not None:
            name = pair.image or pair.path.split("::")[1]
            return _Place(name, pair.path, pair.image_id or f"{pair.source}/{name}", None)
        if pair.image is None:
            return _Place(None, None, None, None)
        if pair.image not in self._found:
            self._found[pair.image] = self._tree.find(pair.image, self._folder)
        path, reason = self._found[pair.image]
        return _Place(path.removeprefix(f"{self._folder}/"), path, pair.image_id or path, reason)


class _Grouping:
    """The group of a row: of the source, of its group column, of the first rule that matches; none when none does.

    A rule matches when each of its patterns is found; a pattern for a side that the row lacks (`image` in a query) is
    passed over, but one pattern at least must have been looked for. A rule without patterns matches every row. The
    image's name is searched as it was found: relative to the images folder, with its suffix.
    """

    def __init__(self, reading: Reading, groups: Sequence[GroupRule]) -> None:
        self._fixed = reading.source.group
        self._track2 = reading.source.format == "track2"
        self._rules: list[tuple[str, dict[str, re.Pattern[str]]]] = []
        for number, rule in enumerate(groups):
            patterns = {}
            for side in ("image", "text", "attributes"):
                pattern = getattr(rule, side)
                if pattern is not None:
                    try:
                        patterns[side] = re.compile(pattern)
                    except re.error as error:
                        raise SourceError(
                            f"data.groups[{number}].{side}: '{pattern}' is no pattern ({error})."
                        ) from None
            self._rules.append((rule.name, patterns))

    def __call__(self, pair: RawPair, image: str | None) -> str | None:
        if self._fixed is not None:
            return self._fixed
        if pair.group is not None:
            return pair.group
        if not self._rules:
            labelled = self._track2 and pair.attributes is not None
            return group_of_attributes(str(pair.attributes)) if labelled else "all"
        sides = {"image": image, "text": pair.text, "attributes": pair.attributes}
        return next((name for name, patterns in self._rules if _matches(patterns, sides)), None)


def _matches(patterns: dict[str, re.Pattern[str]], sides: dict[str, str | None]) -> bool:
    checked = [(pattern, value) for side, pattern in patterns.items() if (value := sides[side]) is not None]
    return bool(checked or not patterns) and all(pattern.search(value) for pattern, value in checked)
