"""Hand-made tables of captions: references of people, and what a captioner wrote."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.ensemble import EvaluationConfig

EVALUATION = EvaluationConfig(bootstrap=200, seed=3)
CAPTIONING = CaptioningConfig(metrics=["bleu_1", "bleu_4", "rouge_l", "cider_d"])
LETTERS = "abcde"


def caption_table(*rows: tuple[str, str | None, str | None]) -> pd.DataFrame:
    """`split, image_id, text`"""
    return pd.DataFrame(list(rows), columns=["split", "image_id", "text"]).astype("str")


def generated(*rows: tuple[str, str, str], cut: tuple[str, ...] = ()) -> pd.DataFrame:
    """What a captioner wrote; the captions of images in `cut` did not end."""
    table = pd.DataFrame(list(rows), columns=["split", "image_id", "caption"]).astype("str")
    ended, tokens = ~table["image_id"].isin(list(cut)), table["caption"].str.len().astype("int64")
    return table.assign(log_probability=-1.0, ended=ended, tokens=tokens)


def random_data(seed: int, images: int = 30) -> tuple[pd.DataFrame, dict[str, str]]:
    """Three references of images of dev and of val, and the first of each with two letters exchanged."""
    rng = np.random.default_rng(seed)
    rows, captions = [], {}
    for number in range(images):
        split = "dev" if number % 3 == 0 else "val"
        texts = ["".join(rng.choice(list(LETTERS), size=rng.integers(5, 9))) for _ in range(3)]
        rows += [(split, f"{split}{number}", text) for text in texts]
        captions[f"{split}{number}"] = texts[0][1:] + texts[0][0]
    return caption_table(*rows), captions


def written(captions: dict[str, str]) -> pd.DataFrame:
    """Captions by image id, as of a captioner; the id begins with the split."""
    return generated(*[(image_id[:3], image_id, text) for image_id, text in captions.items()])
