"""The recall table that retrieval papers print: both directions, over the full gallery."""

from __future__ import annotations

import pandas as pd

DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}
KS = (1, 5, 10)
POOLED = "all"


def recall_table(metrics: pd.DataFrame, split: str = "val") -> pd.DataFrame:
    """Recalls of one split, all groups pooled.

    Args:
        metrics: A long metric table of one member or of the ensemble: columns `split, group, direction, metric, value,
            n_queries, n_gallery`.
        split: Which; `dev` is taken where it is not there.

    Returns:
        A row per direction, `image_to_text` first: columns `split, direction`, `R@1, R@5, R@10` (between 0 and 1; NaN
        where `evaluation.ks` lacks one), `queries` and `gallery` (their numbers; with several groups each query is
        ranked within its own, and `gallery` is the sum).

    Raises:
        ValueError: A recall occurs twice: the table is of several members.
    """
    split = split if split in set(metrics["split"]) else "dev"
    chosen = metrics[metrics["split"] == split]
    if POOLED in set(chosen["group"]):
        chosen = chosen[chosen["group"] == POOLED]
    rows = []
    for direction, name in DIRECTIONS.items():
        found = chosen[chosen["direction"] == direction].set_index("metric")
        if found.index.has_duplicates:
            raise ValueError(f"{direction} {found.index[found.index.duplicated()][0]} occurs twice in the metrics")
        if found.empty:
            continue
        recalls = {f"R@{k}": found["value"].get(f"recall_at_{k}", float("nan")) for k in KS}
        sizes = {"queries": int(found["n_queries"].iloc[0]), "gallery": int(found["n_gallery"].iloc[0])}
        rows.append({"split": split, "direction": name} | recalls | sizes)
    return pd.DataFrame(rows, columns=["split", "direction", *(f"R@{k}" for k in KS), "queries", "gallery"])
