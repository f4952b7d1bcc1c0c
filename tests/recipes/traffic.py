"""Real pedestrian and car crops under the published names of CVPR 2023 track 2, for the twins that retrieve them."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from tests.conftest import SHARED
from tests.recipes.sizes import Size

TRAFFIC = SHARED / "traffic"
SHARES = {"vehicle": 1 / 3, "pedestrian": 2 / 3}
MOST = Size(train=4500, held_out=800)  # more than these take long on two cores and teach small models little


def write_track2(folder: Path, size: Size) -> None:
    """Write train/, val/ and test/ as the challenge hands them out, a third of the photos cars.

    The crops come without a blind test, so the held-out ones are cut in two: no photo is in val and in test, and no
    pedestrian's attribute vector. The queries of the test are the sentences of its photos, cars first.
    """
    train = _crops("train", min(size.train, MOST.train))
    held_out = _crops("val", min(size.held_out, MOST.held_out))
    in_test = held_out["look"] % 2 == 1
    names = random.Random(0)
    for split, crops in (("train", train), ("val", held_out[~in_test])):
        lines = []
        for crop in crops.itertuples():
            # Labelled cars have names without meaning; pedestrians have numbers.
            name = crop.image if crop.kind == "pedestrian" else _letters(names)
            _write(folder / split / f"{split}_images" / name, crop.bytes)
            lines.append(f"{name}${crop.attributes}${crop.text}")
        _write(folder / split / f"{split}_label.txt", _lines(lines))
    for crop in held_out[in_test].itertuples():
        _write(folder / "test/test_images" / crop.image, crop.bytes)
    _write(folder / "test/test_text.txt", _lines(held_out.loc[in_test, "text"]))


def train_texts(folder: Path) -> list[str]:
    """The sentences of the train photos that `write_track2` wrote."""
    return [line.split("$")[2] for line in (folder / "train/train_label.txt").read_text().splitlines()]


def _crops(file: str, count: int) -> pd.DataFrame:
    """`count` rows of the shared table in the shares of the challenge, cars first.

    `look` numbers what two splits may not share: a pedestrian's vector, a car's photo.
    """
    table = pd.read_parquet(TRAFFIC / f"{file}.parquet")
    parts = []
    for kind, share in SHARES.items():
        of_kind = table[table["kind"] == kind]
        part = of_kind.sample(min(round(count * share), len(of_kind)), random_state=0).sort_index()
        parts.append(part.assign(look=pd.factorize(part["attributes" if kind == "pedestrian" else "image"])[0]))
    return pd.concat(parts, ignore_index=True)


def _letters(names: random.Random) -> str:
    return "".join(names.choices(string.ascii_lowercase, k=10)) + ".jpg"


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
