"""The files at the end: the ranked JSON of CVPR 2023 track 2, and the CSV of a one-to-one matching."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pandas as pd


def track2_submission(texts: pd.DataFrame, ranked: pd.DataFrame, top_k: int = 10) -> dict[str, Any]:
    """The object to write as JSON (indent 4, not ASCII-escaped).

    Args:
        texts: `text_id, text` of the queries, one row each, in the order of the file they came from.
        ranked: `query_id, rank, gallery_id`; ids of images are file names, paths (their last part is submitted where
            no other image has it, else the whole) or names of the user's own.
        top_k: Images per query, 10 in track 2.

    Returns:
        `{"results": [{"text": ..., "image_names": [...]}, ...]}`, an entry per row of `texts`; where a gallery is
        smaller than `top_k`, all of it.

    Raises:
        ValueError: A query has no image at all.
    """
    names = _file_names(ranked["gallery_id"])
    best = ranked[ranked["rank"] <= top_k].sort_values(["query_id", "rank"], kind="stable")
    images = best["gallery_id"].map(names).groupby(best["query_id"]).agg(list).to_dict()
    results = []
    for query, text in zip(texts["text_id"], texts["text"], strict=True):
        found = images.get(query, [])
        if not found:
            raise ValueError(
                f"query {query} ('{text}') has no ranked images: there is no image of its group in this split. Add "
                "images, or correct data.groups so that queries and images fall into the same group."
            )
        results.append({"text": text.strip(), "image_names": found})
    return {"results": results}


def matching_csv(texts: pd.DataFrame, matched: pd.DataFrame, name_column: str = "image_name") -> pd.DataFrame:
    """The one column of the CSV of a one-to-one matching.

    Args:
        texts: `text_id` of the queries in the order of the file they came from.
        matched: `group, text_id, image_id`; in a group each at most once.
        name_column: Its header.

    Returns:
        A row per query: the file name of its image, empty where there were more queries than images.

    Raises:
        ValueError: A query or an image is matched twice.
    """
    for column in ("text_id", "image_id"):
        if (twice := matched.duplicated(["group", column])).any():
            raise ValueError(f"{column} {matched.loc[twice, column].iloc[0]} is matched twice: this is not one to one.")
    names = _file_names(matched["image_id"])
    partner = dict(zip(matched["text_id"], matched["image_id"].map(names), strict=True))
    return pd.DataFrame({name_column: pd.array([partner.get(text, "") for text in texts["text_id"]], dtype="str")})


def _file_names(images: pd.Series) -> dict[str, str]:
    """Image id to the last part of its path, or to the whole path where another image has the same last part."""
    distinct = pd.Series(images.unique(), dtype="str")
    names = distinct.map(lambda image: PurePosixPath(image).name)
    return dict(zip(distinct, names.where(~names.duplicated(keep=False), distinct), strict=True))
