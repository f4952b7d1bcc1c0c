"""Truth between texts and images, found the slow obvious way: every text against every image, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmodal_kedro.data.attributes import normalise_phrase


def is_right(text_row: dict, image_row: dict, mode: str) -> bool:
    """Whether the image of one row is right for the text of another."""
    if text_row["image_id"] == image_row["image_id"] and text_row["text_id"] == image_row["text_id"]:
        return True
    if mode == "text":
        return text_row["text"] is not None and text_row["text"] == image_row["text"]
    query, item = text_row["attributes"], image_row["attributes"]
    if mode == "id" or query is None or item is None:
        return False
    if mode == "attribute_text":
        return normalise_phrase(query) == normalise_phrase(item)
    wanted, there = query.strip().split(","), item.strip().split(",")
    return wanted[0] == there[0] and all(b == "1" for a, b in zip(wanted, there, strict=True) if a == "1")


def text_to_image_relevance(pairs: pd.DataFrame, text_ids: list[str], image_ids: list[str], mode: str) -> np.ndarray:
    """bool [T, I]."""
    rows = pairs.astype(object).where(pairs.notna(), None).to_dict("records")
    truth = np.zeros((len(text_ids), len(image_ids)), dtype=bool)
    for t, text_id in enumerate(text_ids):
        for i, image_id in enumerate(image_ids):
            truth[t, i] = any(
                is_right(text_row, image_row, mode)
                for text_row in rows
                if text_row["text_id"] == text_id
                for image_row in rows
                if image_row["image_id"] == image_id
            )
    return truth
