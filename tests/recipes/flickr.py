"""Flickr8k photos with their sentences, from the shared data, for the twins that retrieve them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tests.conftest import SHARED

FLICKR = SHARED / "flickr8k"


class Photo(NamedTuple):
    """A photo, 128 x 128, as encoded bytes, and five sentences about it."""

    name: str
    sentences: list[str]
    encoded: bytes


def train_photos(language: str, count: int) -> list[Photo]:
    """The first `count` photos to learn from, with sentences in `zh` or `en`."""
    return _photos(sorted(FLICKR.glob("train-*.parquet")), language, count)


def held_out_photos(language: str, count: int) -> list[Photo]:
    """The first `count` photos that no training sees."""
    return _photos([FLICKR / "val.parquet"], language, count)


def save_photos(photos: Iterable[Photo], folder: Path) -> None:
    """Write each photo as it is under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        (folder / photo.name).write_bytes(photo.encoded)


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([header, *rows])


def _photos(files: Sequence[Path], language: str, count: int) -> list[Photo]:
    found: list[Photo] = []
    for file in files:
        if len(found) >= count:
            break
        table = pd.read_parquet(file, columns=["image", f"captions_{language}", "bytes"])
        for name, sentences, encoded in table.head(count - len(found)).itertuples(index=False):
            found.append(Photo(name, list(sentences), encoded))
    return found
