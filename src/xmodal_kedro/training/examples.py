"""The caption table turned into what the loop reads: text, row in the image store, and the key of its positives."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.member import LossConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.data.relevance import relevance_keys


def train_examples(
    captions: pd.DataFrame, images: ImageStore, relevance: RelevanceConfig, loss: LossConfig
) -> pd.DataFrame:
    """Select the train captions that have an image.

    Args:
        captions: The caption table.
        images: Where the pixels lie.
        relevance: Decides the keys where the loss asks for `relevance_key`.
        loss: Its `multi_positive` says what makes two rows positives of each other.

    Returns:
        Columns `text`, `image_row` (row in the store) and `key`: rows with equal keys are positives of each other.

    Raises:
        ValueError: There is nothing to train on.
    """
    rows = train_rows(captions)
    if loss.multi_positive == "relevance_key":
        keys = relevance_keys(rows, relevance).to_numpy()
    elif loss.multi_positive == "text":
        keys = pd.factorize(rows["text"])[0]
    else:
        keys = np.arange(len(rows))  # all different, which leaves the diagonal alone
    image_rows = images.rows(rows["image_id"].tolist())
    return pd.DataFrame({"text": rows["text"].to_numpy(), "image_row": image_rows, "key": keys})


def train_rows(captions: pd.DataFrame) -> pd.DataFrame:
    """Rows of train that have an image and a text.

    Raises:
        ValueError: There are none.
    """
    rows = captions[(captions["split"] == "train") & captions["image_id"].notna() & captions["text"].notna()]
    if rows.empty:
        raise ValueError("no train caption has an image: check data.sources for one with `split: train`")
    return rows
