"""What every format hands over: raw rows cut into (image, text) cells, and the rows that could not be cut.

A row may hold several captions (several text columns, or a list in a cell) and several images (a list in a cell): it
becomes one raw pair per combination. Nothing is looked up here; `assemble` finds the files, ids and groups.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_kedro.config.data import Columns, Source
from xmodal_kedro.data.paths import ImageTree
from xmodal_kedro.data.quarantine import Entry
from xmodal_kedro.data.text_files import EncodingError, is_undecodable, read_text

NO_TEXT = frozenset({"nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "#N/A"})  # how tools write a missing text
UNDECODABLE = "text holds bytes that cannot be decoded: repair the line, or set 'encoding' of the source"


class SourceError(ValueError):
    """A source as a whole cannot be read: a missing file, folder or column, or a file of another format."""


@dataclass(frozen=True)
class Reading:
    """What a format reads with: the tree that the source lies in, the source, and its name in errors."""

    tree: ImageTree
    source: Source
    key: str

    @property
    def root(self) -> Path:
        """Folder that paths are relative to."""
        return self.tree.root

    def text(self) -> str:
        """The text of the source's file, or a `SourceError` that names it."""
        file = self.root / str(self.source.file)
        if not file.is_file():
            raise SourceError(f"{self.key}.file: {file} does not exist.")
        try:
            return read_text(file, self.source.encoding)
        except EncodingError as error:
            raise SourceError(f"{self.key}.encoding: {error}") from None
        except OSError as error:
            raise SourceError(f"{self.key}.file: {file} cannot be read ({error.strerror}).") from None

    def check_columns(self, file: str, there: Sequence[str]) -> None:
        """Raise one `SourceError` for the first configured column that a file does not have."""
        for role, column in configured(self.source.columns):
            if column not in there:
                close = difflib.get_close_matches(column, there, n=1)
                meant = f" Did you mean '{close[0]}'?" if close else ""
                null = f" If the file has no {role}s, set it to null." if role in ("image", "text") else ""
                raise SourceError(
                    f"{self.key}.columns.{role}: {file} has no column '{column}'; it has "
                    f"{', '.join(repr(name) for name in there)}.{meant}{null}"
                )
            if there.count(column) > 1:
                raise SourceError(f"{self.key}.columns.{role}: {file} has {there.count(column)} columns '{column}'.")


def configured(columns: Columns) -> list[tuple[str, str]]:
    """The (key, column) pairs that a source asks for, in the order of the config."""
    found = [("image", columns.image), *[("text", name) for name in text_columns(columns)]]
    roles = ("image_id", "text_id", "attributes", "group", "bytes")
    found += [(role, getattr(columns, role)) for role in roles]
    return [(role, name) for role, name in found if name is not None]


def cell_columns(columns: Columns) -> dict[str, str]:
    """Column of each role that is one cell of a row: all but the texts and the bytes."""
    return {role: name for role, name in configured(columns) if role not in ("text", "bytes")}


def text_columns(columns: Columns) -> list[str]:
    """The text columns as a list: none, one or several."""
    if columns.text is None:
        return []
    return [columns.text] if isinstance(columns.text, str) else columns.text


class RawPair(NamedTuple):
    """One image and one text of a row, as they stand in the file; `path` only where the reader knows the address."""

    source: str
    row: int
    image: str | None
    text: str | None
    caption: int | None  # which caption of the row, where the row holds several
    image_id: str | None
    text_id: str | None
    attributes: str | None
    group: str | None
    path: str | None


class RawRows:
    """Collects the raw pairs of one source.

    Args:
        source: The config of the source.
        file: Name of the file for the `source` column.
    """

    def __init__(self, source: Source, file: str) -> None:
        columns = source.columns
        self.file = file
        self.pairs: list[RawPair] = []
        self.bad: list[Entry] = []
        self.seen = 0
        blind = source.split == "test"
        self._image_may_lack = blind or (columns.image is None and columns.bytes is None)
        self._text_may_lack = blind or columns.text is None
        self._columns = dict(configured(columns)) | {"text": ", ".join(text_columns(columns))}

    def reject(self, row: int, key: str, reason: str) -> None:
        """Count a row that cannot be used."""
        self.seen += 1
        self._quarantine(row, key, reason)

    def add(
        self,
        row: int,
        cells: Mapping[str, Any],
        texts: Iterable[Any],
        path: str | None = None,
        file: str | None = None,
    ) -> None:
        """Cut one row into raw pairs, or quarantine it.

        Args:
            row: Its number in the file.
            cells: By role. `image` may be a list of names, then `image_id` is one too; `text_id` may be a list where
                there are several captions, else it is numbered; `attributes` and `group` are single cells.
            texts: Captions; each may again be a list of captions.
            path: Address of the image where it lies inside the file.
            file: The file, where it is not that of all rows.
        """
        self.seen += 1
        try:
            images = [name for name in map(_string, _as_list(cells.get("image"))) if name]
            captions = [_caption(text) for cell in texts for text in _as_list(cell)]
            image_ids, text_ids = _image_ids(cells.get("image_id")), _text_ids(cells.get("text_id"), len(captions))
            attributes, group = _string(cells.get("attributes"), right_only=True), _string(cells.get("group"))
        except _CellError as error:
            self._quarantine(row, str(error), error.reason, file)
            return
        has_image = bool(images) or path is not None
        has_text = any(text is not None for text in captions)
        problem = self._lack(has_image, has_text) or self._odd_id(
            (image_ids, max(1, len(images)), has_image), (text_ids, len(captions), has_text)
        )
        if problem is None and "group" in self._columns and group is None:
            problem = self._columns["group"], "group is empty: fill the column, or drop columns.group"
        if problem is not None:
            self._quarantine(row, *problem, file)
            return
        several = len(captions) > 1
        names: Sequence[str | None] = images or [None]
        kept: Sequence[int | None] = [number for number, text in enumerate(captions) if text is not None]
        for place, name in enumerate(names):
            for number in kept or [None]:
                self.pairs.append(
                    RawPair(
                        source=file or self.file,
                        row=row,
                        image=name,
                        text=None if number is None else captions[number],
                        caption=number if several else None,
                        image_id=image_ids[place] if image_ids and has_image else None,
                        text_id=None if number is None or not text_ids else text_ids[number],
                        attributes=attributes,
                        group=group,
                        path=path,
                    )
                )

    def _lack(self, has_image: bool, has_text: bool) -> tuple[str, str] | None:
        """Key and reason when a side is empty that must not be."""
        if not has_image and not has_text:
            return self._columns.get("image", "") or self._columns["text"], "row has neither image nor text"
        if not has_image and not self._image_may_lack:
            return self._columns.get("image", ""), "image is empty"
        if not has_text and not self._text_may_lack:
            return self._columns["text"], "text is empty"
        return None

    def _odd_id(self, *sides: tuple[list[str | None], int, bool]) -> tuple[str, str] | None:
        """Key and reason when the ids (image, text) of the sides that are there are not one per item."""
        for role, (ids, items, there) in zip(("image_id", "text_id"), sides, strict=True):
            if role in self._columns and there:
                if not ids or None in ids:
                    return self._columns[role], f"{role} is empty"
                if len(ids) != items:
                    return self._columns[role], f"row has not one {role} for each of its items: give a list of ids"
        return None

    def _quarantine(self, row: int, key: str, reason: str, file: str | None = None) -> None:
        self.bad.append(Entry("row", file or self.file, row, key, reason))


class _CellError(ValueError):
    """A cell that is no text; the message is the start of the cell."""

    def __init__(self, cell: Any, reason: str) -> None:
        super().__init__(str(cell)[:80])
        self.reason = reason


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _image_ids(cell: Any) -> list[str | None]:
    return [] if cell is None else [_string(value) for value in _as_list(cell)]


def _text_ids(cell: Any, captions: int) -> list[str | None]:
    """One id per caption: a list as it stands, a single id numbered where there are several captions."""
    if isinstance(cell, list):
        return [_string(value) for value in cell]
    value = _string(cell)
    if value is None:
        return []
    return [value] if captions < 2 else [f"{value}#{number}" for number in range(captions)]


def _string(cell: Any, right_only: bool = False) -> str | None:
    """A cell as stripped text (ids and names may be numbers); none when it is empty."""
    if cell is None:
        return None
    if isinstance(cell, float):
        if cell != cell:
            return None
        cell = str(int(cell)) if cell.is_integer() else str(cell)
    elif isinstance(cell, int | Decimal) and not isinstance(cell, bool):
        cell = str(cell)
    elif not isinstance(cell, str):
        raise _CellError(cell, f"cell holds a {type(cell).__name__}, not text")
    cell = cell.rstrip() if right_only else cell.strip()
    if not cell:
        return None
    if is_undecodable(cell):
        raise _CellError(cell, UNDECODABLE)
    return cell


def _caption(cell: Any) -> str | None:
    text = _string(cell)
    return None if text in NO_TEXT else text
