"""Cuts `dev` from `train` by image, the same images for the same seed wherever the rows stand in the table.

An image is everything that shares an image id or a path, so no image is on both sides. Per group the share is exact (to
the nearest image). Which images go is decided by a hash of seed and image id: new images move few old ones.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def cut_dev(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Turn a share of the train images of every group into `dev`.

    A group of one image stays in train; a larger one gives at least one image and keeps at least one. An image with
    rows in several groups is counted in the group of its first row. A table that has a `dev` split of its own, given by
    the user, comes back as it is.

    Args:
        pairs: The pair table.
        share: Of the images of each group, 0 < share < 1.
        seed: Another seed, another cut.

    Returns:
        A table with the same rows in the same order; only `split` differs.
    """
    in_train = (pairs["split"] == "train").to_numpy(copy=True)
    train = pairs[in_train]
    if train.empty or (pairs["split"] == "dev").any():
        return pairs.copy()
    images = pd.DataFrame(
        {"image": _images(train), "group": train["group"], "name": train["image_id"].fillna(train["path"])}
    )
    firsts = images.groupby("image", sort=False).agg({"group": "first", "name": "min"})
    firsts["order"] = [_hash(seed, name) for name in firsts["name"]]
    firsts = firsts.sort_values("order")
    place = firsts.groupby("group").cumcount()
    count = firsts.groupby("group")["name"].transform("size")
    wanted = (count * share).round().clip(lower=1).clip(upper=count - 1)
    chosen = firsts.index[place < wanted]
    cut = pairs.copy()
    in_train[in_train] = images["image"].isin(chosen)
    cut["split"] = cut["split"].mask(in_train, "dev")
    return cut


def _images(rows: pd.DataFrame) -> np.ndarray:
    """Number of the image of each row: rows that share an id or a path, also through other rows, have one number.

    Rows with neither id nor path are images of their own.
    """
    count = len(rows)
    ids, distinct_ids = pd.factorize(rows["image_id"])
    paths, distinct_paths = pd.factorize(rows["path"])
    nodes = count + len(distinct_ids) + len(distinct_paths)
    row = np.arange(count)
    ends = np.concatenate([count + ids, count + len(distinct_ids) + paths])
    starts = np.concatenate([row, row])
    known = np.concatenate([ids >= 0, paths >= 0])
    edges = coo_array((np.ones(known.sum(), dtype=np.int8), (starts[known], ends[known])), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:count]


def _hash(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).hexdigest()
