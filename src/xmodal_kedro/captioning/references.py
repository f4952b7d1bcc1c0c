"""What people wrote about the images of a split, by image: all that a caption is held to."""

from __future__ import annotations

import pandas as pd


def references_of(captions: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """The sentences of every image of a split.

    A sentence that stands twice at an image counts once: what prompts or readers repeat is no second opinion.

    Args:
        captions: The caption table; `image_id`, `text` and `split` are read.
        split: Whose images.

    Returns:
        Image id to its distinct sentences, images and sentences in the order of the table. Rows without an image or
        without a text are left out, so an image of which nothing is written is not there.
    """
    rows = captions.loc[captions["split"] == split, ["image_id", "text"]].dropna().drop_duplicates()
    found: dict[str, list[str]] = {}
    for image_id, text in zip(rows["image_id"].tolist(), rows["text"].tolist(), strict=True):
        found.setdefault(image_id, []).append(text)
    return found
