"""All sources of a recipe become one pair table, free of leaks, of ids that contradict each other and of duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from xmodal_kedro.config.data import DataConfig, GroupRule, Source
from xmodal_kedro.data.paths import ImageTree
from xmodal_kedro.data.quarantine import Entry, Kind, build, merge
from xmodal_kedro.data.readers.assemble import Read, assemble
from xmodal_kedro.data.readers.registry import READERS
from xmodal_kedro.data.readers.rows import Reading, SourceError


def read_source(root: Path, source: Source, groups: Sequence[GroupRule], key: str = "data.sources") -> Read:
    """Read one source.

    Args:
        root: Folder that every path of the table is relative to and that no image may lie outside of.
        source: Its config.
        groups: Rules that decide the group of a row, unless the source or its group column does.
        key: How errors name the source.

    Returns:
        Its pairs in the order of the file, its bad rows, and the number of rows seen.

    Raises:
        SourceError: The source as a whole cannot be read: a missing file, folder or column, the wrong format.
    """
    return _read(ImageTree(root), source, groups, key)


def read_pairs(data: DataConfig, project: Path) -> Read:
    """Read all sources into one pair table.

    Besides the bad rows of each source these go to the quarantine, in this order:

    - leaks: a row of `train` or `dev` whose image (same id or same path) is also in `val` or `test`, and a row of
      `train` whose image is in `dev`, as kind `row`: the side that is learned from gives way;
    - contradictions, as kind `row`: an image id that already stands for another path, a path that already has another
      image id, a text id that already stands for another text of its split; the later row goes;
    - duplicates, as kind `duplicate`: the same image, text and split again. Queries without an image are none, however
      often they repeat: each wants its answer.

    Args:
        data: The config of the data.
        project: Folder of the project, which `data.root` is relative to unless it is absolute.

    Raises:
        SourceError: One source as a whole cannot be read, or has no rows.
    """
    root = project / data.root
    if not root.is_dir():
        raise SourceError(f"data.root: {root} is not a folder.")
    tree = ImageTree(root)
    reads = [_read(tree, source, data.groups, f"data.sources[{number}]") for number, source in enumerate(data.sources)]
    pairs = pd.concat([read.pairs for read in reads], ignore_index=True)
    quarantine = [read.quarantine for read in reads]
    for check in CHECKS:
        out = check.found(pairs)
        quarantine.append(_entries(pairs[out], check))
        pairs = pairs[~out]
    return Read(pairs.reset_index(drop=True), merge(*quarantine), sum(read.rows for read in reads))


def _read(tree: ImageTree, source: Source, groups: Sequence[GroupRule], key: str) -> Read:
    columns = source.columns
    if source.split in ("train", "dev") and source.format != "folder":
        lacks_image = source.format == "queries" or (columns.image is None and columns.bytes is None)
        if lacks_image or columns.text is None:
            side = "images" if lacks_image else "texts"
            raise SourceError(f"{key}: split '{source.split}' needs pairs, and this source has no {side}.")
    if columns.bytes is not None and source.format != "parquet":
        raise SourceError(f"{key}.columns.bytes: only Parquet holds image bytes, not format '{source.format}'.")
    reading = Reading(tree, source, key)
    if source.images is not None and (reason := tree.find_folder(source.images).reason) is not None:
        raise SourceError(f"{key}.images: {tree.root / source.images}: {reason}.")
    raw = READERS[source.format](reading)
    if raw.seen == 0:
        raise SourceError(f"{key}: {raw.file} has no rows.")
    return assemble(raw, reading, groups)


def _leaks(pairs: pd.DataFrame) -> pd.Series:
    """Rows of train or dev whose image is held out in a later split."""
    out = pd.Series(False, index=pairs.index)
    for learned, held_out in ((("train", "dev"), ("val", "test")), (("train",), ("dev",))):
        held = pairs[pairs["split"].isin(held_out)]
        same = pd.Series(False, index=pairs.index)
        for column in ("image_id", "path"):
            same |= pairs[column].isin(held[column].dropna())
        out |= same & pairs["split"].isin(learned)
    return out


def _other_path(pairs: pd.DataFrame) -> pd.Series:
    return _differs_from_first(pairs, ["image_id"], "path")


def _other_id(pairs: pd.DataFrame) -> pd.Series:
    return _differs_from_first(pairs, ["path"], "image_id")


def _other_text(pairs: pd.DataFrame) -> pd.Series:
    return _differs_from_first(pairs, ["split", "text_id"], "text")


def _differs_from_first(pairs: pd.DataFrame, keys: list[str], value: str) -> pd.Series:
    """Rows whose value is not that of the first row with the same keys; rows without a key or a value never differ."""
    known = pairs.dropna(subset=[*keys, value])
    differs = known[value] != known.groupby(keys, sort=False)[value].transform("first")
    return differs.reindex(pairs.index, fill_value=False)


def _repeated(pairs: pd.DataFrame) -> pd.Series:
    return pairs.duplicated(["image_id", "text", "split"]) & pairs["image_id"].notna()


class _Check(NamedTuple):
    """One check of the whole table: which rows go, as what, shown by which column, why."""

    found: Callable[[pd.DataFrame], pd.Series]
    kind: Kind
    key: str
    reason: str


CHECKS = (
    _Check(_leaks, "row", "path", "image is also in a split that is held out (val, test, or dev for train)"),
    _Check(_other_path, "row", "path", "image_id already stands for another path: ids must be unique over all sources"),
    _Check(_other_id, "row", "path", "image already has another image_id: columns.image_id must name images, not rows"),
    _Check(_other_text, "row", "text_id", "text_id already stands for another text of this split"),
    _Check(_repeated, "duplicate", "text_id", "same image, text and split as an earlier row"),
)


def _entries(rows: pd.DataFrame, check: _Check) -> pd.DataFrame:
    keys = rows[check.key].fillna(rows["image_id"])
    return build(
        Entry(check.kind, source, row, key, check.reason)
        for source, row, key in zip(rows["source"], rows["row"], keys, strict=True)
    )
