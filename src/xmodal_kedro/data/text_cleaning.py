"""Train captions are cleaned as BLIP (arXiv 2201.12086) cleans them; what a user asks stays as it was typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmodal_kedro.config.member import CleanTextConfig

if TYPE_CHECKING:
    import pandas as pd


def clean_text(text: str, config: CleanTextConfig) -> str:
    """Clean one caption.

    In this order: lower case, `blank` characters become blanks, runs of white space become one blank, both ends are
    stripped, the first `max_words` words are kept. A caption of blank characters alone becomes the empty text.
    """
    if config.lower:
        text = text.lower()
    words = text.translate(dict.fromkeys(map(ord, config.blank), " ")).split()
    return " ".join(words[: config.max_words])


def cleaned(captions: pd.DataFrame, config: CleanTextConfig | None) -> pd.DataFrame:
    """The captions of a training with their column `text` cleaned, missing ones kept; as they are without a config."""
    if config is None:
        return captions
    clean = {text: clean_text(text, config) for text in captions["text"].dropna().unique()}
    return captions.assign(text=captions["text"].map(clean))
