"""Cuts `dev` from `train` by image, or by attributes or text; the same cut for the same seed, whatever the row order.

What shares an image id, a path or - where a group is cut by them - its attributes or its text is one unit, and no unit
is on both sides: so photos of one person, who has one attribute vector, are not split between training and choosing.
Which units go is decided by a hash of seed and image id: new images move few old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xmodal_kedro.config.data import DevUnit


def cut_dev(pairs: pd.DataFrame, share: float, seed: int, by: Mapping[str, DevUnit] | None = None) -> pd.DataFrame:
    """Turn a share of the train images of every group into `dev`.

    Units are taken in the order of their hash as long as they fit into the share, at least one of each group, and at
    least one stays in train. A unit with rows in several groups is counted in the group of its first row. A table that
    has a `dev` split of its own, given by the user, comes back as it is.

    Args:
        pairs: The pair table.
        share: Of the images of each group, 0 < share < 1.
        seed: Another seed, another cut.
        by: What makes a unit in which group: `image` (also where a group is not named), `attributes` or `text`.

    Returns:
        A table with the same rows in the same order; only `split` differs.
    """
    in_train = (pairs["split"] == "train").to_numpy(copy=True)
    train = pairs[in_train]
    if train.empty or (pairs["split"] == "dev").any():
        return pairs.copy()
    images = _connected([train["image_id"], train["path"]])
    unit = _connected([pd.Series(images, train.index), *_shared(train, by or {})])
    names = train["image_id"].fillna(train["path"])
    rows = pd.DataFrame({"unit": unit, "image": images, "group": train["group"], "name": names})
    units = rows.groupby("unit", sort=False).agg(
        group=("group", "first"), name=("name", "min"), size=("image", "nunique")
    )
    units["order"] = [_hash(seed, name) for name in units["name"]]
    chosen: list[Hashable] = []
    for _, of_group in units.sort_values("order").groupby("group", sort=False):
        chosen += _fill(of_group["size"], round(float(of_group["size"].sum()) * share))
    cut = pairs.copy()
    in_train[in_train] = rows["unit"].isin(chosen)
    cut["split"] = cut["split"].mask(in_train, "dev")
    return cut


def _fill(sizes: pd.Series, wanted: int) -> list[Hashable]:
    """Units, in order, that fit into `wanted` images; never none of several, never all."""
    taken: list[Hashable] = []
    images = 0
    for unit, size in sizes.iloc[: len(sizes) - 1].items():
        if images + size <= max(wanted, 1):
            taken.append(unit)
            images += size
    return taken or sizes.index[: min(1, len(sizes) - 1)].tolist()


def _shared(rows: pd.DataFrame, by: Mapping[str, DevUnit]) -> list[pd.Series]:
    """Attributes and texts, with their group, of the rows that are cut by them; elsewhere missing."""
    unit = rows["group"].map(lambda group: by.get(group, "image"))
    return [
        rows["group"].str.cat(rows[name], sep="\0").where(unit == name)
        for name in ("attributes", "text")
        if (unit == name).any()
    ]


def _connected(keys: Sequence[pd.Series]) -> np.ndarray:
    """A number per row: rows that share one of the keys, also through other rows, have one number.

    A row without any key has a number of its own.
    """
    nodes = count = len(keys[0])
    row = np.arange(count)
    starts, ends = [], []
    for key in keys:
        codes, distinct = pd.factorize(key)
        starts.append(row[codes >= 0])
        ends.append(nodes + codes[codes >= 0])
        nodes += len(distinct)
    edge = np.concatenate(starts), np.concatenate(ends)
    edges = coo_array((np.ones(len(edge[0]), dtype=np.int8), edge), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:count]


def _hash(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).hexdigest()
