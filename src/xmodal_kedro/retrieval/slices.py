"""What is ranked against what: one slice per split and group, with its texts, its images and the truth between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.data.relevance import text_to_image_relevance


@dataclass(frozen=True)
class Slice:
    """Texts and images of one group in one split; each text is ranked against all of these images, and back."""

    split: str
    group: str
    text_ids: list[str]
    texts: list[str]
    image_ids: list[str]
    relevance: sparse.csr_array  # [T, I]; empty where the split is unlabelled

    @property
    def clusters(self) -> np.ndarray:
        """Texts that read the same share a number: their results are not independent."""  # [T] int64
        return pd.factorize(np.asarray(self.texts, dtype=object))[0]


def cut_slices(captions: pd.DataFrame, relevance: RelevanceConfig, splits: list[str]) -> list[Slice]:
    """Cut the evaluation splits into slices.

    Args:
        captions: The caption table; a pair table, whose texts are its own, is one too.
        relevance: Which mode of relevance holds in which group.
        splits: Those wanted, for example `["dev", "val"]`; a split without rows gives no slice.

    Returns:
        Slices in the order of `splits`, then of the groups' first appearance. A slice may lack texts or images.
    """
    slices = []
    for split in splits:
        of_split = captions[captions["split"] == split]
        for group, rows in of_split.groupby("group", sort=False):
            texts = rows.dropna(subset=["text_id"]).drop_duplicates("text_id")
            text_ids = texts["text_id"].tolist()
            image_ids = rows["image_id"].dropna().drop_duplicates().tolist()
            mode = relevance.groups.get(str(group), relevance.default)
            # Equal texts are those that came equal: what is right must not depend on how a recipe puts its queries.
            came = rows.assign(text=rows.get("pair_text", rows["text"]))
            truth = text_to_image_relevance(came, text_ids, image_ids, mode)
            slices.append(Slice(split, str(group), text_ids, texts["text"].tolist(), image_ids, truth))
    return slices
