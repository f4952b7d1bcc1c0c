"""Copies of a picture in two splits are found by their pixels, whatever they are called."""

from pathlib import Path

import pandas as pd
from PIL import Image

from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.data.image_store import pack
from xmodal_kedro.data.leaks import same_pictures


def test_copies_under_other_names_are_counted(tmp_path: Path) -> None:
    colors = {
        "a.png": "red",
        "b.png": "blue",
        "c.png": "green",
        "copy.png": "red",
        "again.png": "red",
        "d.png": "black",
    }
    for name, color in colors.items():
        Image.new("RGB", (9, 5), color).save(tmp_path / name)
    store, _ = pack([(name, name) for name in colors], tmp_path, tmp_path / "store", ImagesConfig(size=8, workers=1))
    splits = ["train", "train", "dev", "val", "val", "test"]
    pairs = pd.DataFrame({"image_id": list(colors), "split": splits})
    pairs = pd.concat([pairs, pd.DataFrame({"image_id": [None], "split": ["test"]})], ignore_index=True)
    assert same_pictures(pairs, store) == [("train", "val", 1)]
    assert same_pictures(pairs.iloc[:0], store) == []
