"""Pictures that are in two splits under different names: what trained on one has seen the other."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pandas as pd

from xmodal_kedro.data.image_store import ImageStore


def same_pictures(pairs: pd.DataFrame, images: ImageStore) -> list[tuple[str, str, int]]:
    """Count the images of each split whose packed pixels are also those of an image of another split.

    Args:
        pairs: The pair table, with its splits cut.
        images: The packed images.

    Returns:
        (split, other split, images of the first that are in the second), where there are any; train, dev, val, test.
    """
    of_split = pairs.dropna(subset=["image_id"]).drop_duplicates(["split", "image_id"])
    rows = images.rows(of_split["image_id"].tolist())
    prints = np.array([hashlib.blake2b(images.pixels[row].tobytes(), digest_size=16).hexdigest() for row in rows])
    found = []
    for first, second in combinations(("train", "dev", "val", "test"), 2):
        ours, theirs = (prints[(of_split["split"] == split).to_numpy()] for split in (first, second))
        if count := int(np.isin(ours, theirs).sum()):
            found.append((first, second, count))
    return found
