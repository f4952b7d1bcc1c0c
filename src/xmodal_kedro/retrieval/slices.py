"""What is ranked against what: one slice per split and group, with its texts, its images and the truth between them.

Results of a slice are also told apart by what its texts are about: `attribute_labels` names that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import sparse

from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig
from xmodal_kedro.data.attributes import PARTS, PEDESTRIAN_BITS, Vocabulary, normalise_phrase
from xmodal_kedro.data.prompts import parts_of, train_vocabulary
from xmodal_kedro.data.relevance import text_to_image_relevance

ATTRIBUTES = (*PARTS, "gender", "attributes")  # of vehicle phrases, of pedestrian vectors, of anything else


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


def attribute_labels(captions: pd.DataFrame, prompts: PromptsConfig) -> pd.DataFrame:
    """What each text is about by the attributes of its row: a label per attribute, null where nothing is said.

    A vehicle phrase has `color`, `brand` and `type`. Of a pedestrian vector only bit 0 has a known meaning, `gender`.
    Other attribute strings are labels as they are, in `attributes`.

    Args:
        captions: The caption table; of several rows of a text the first counts.
        prompts: Which group's attributes are vehicle phrases, and their vocabulary, if it is not learned from train.

    Returns:
        Indexed by `text_id`, for texts with attributes; of the columns `ATTRIBUTES` those in which anything is said.
    """
    vocabulary = train_vocabulary(captions, prompts)
    rows = captions.dropna(subset=["text_id", "attributes"]).drop_duplicates("text_id")

    @cache
    def labels(attributes: str, vehicle: bool) -> dict[str, str]:
        return _labels(attributes, vocabulary if vehicle else None)

    vehicles = rows["group"] == prompts.vehicle_group
    found = pd.DataFrame(map(labels, rows["attributes"], vehicles), index=rows["text_id"].tolist())
    return found.reindex(columns=[name for name in ATTRIBUTES if name in found.columns])


def _labels(attributes: str, vocabulary: Vocabulary | None) -> dict[str, str]:
    bits = [field.strip() for field in attributes.split(",")]
    if len(bits) == PEDESTRIAN_BITS and set(bits) <= {"0", "1"}:
        return {"gender": "female" if bits[0] == "1" else "male"}
    return {"attributes": normalise_phrase(attributes)} if vocabulary is None else parts_of(attributes, vocabulary)
