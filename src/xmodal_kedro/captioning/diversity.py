"""Whether a captioner says something about the image: how many captions differ, and how much they repeat themselves.

A captioner that ignores its images writes one caption for all of them, one that has not learned to end writes the same
words over and over; scores against references alone tell neither from a weak captioner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xmodal_kedro.captioning.metrics.bleu import runs
from xmodal_kedro.captioning.metrics.scores import Tokens

ORDER = 4


def distinct_captions(texts: Sequence[str]) -> float:
    """Distinct captions over captions, between 0 and 1; NaN for none.

    Devlin, Cheng, Fang, Gupta, Deng, He, Zweig, Mitchell: Language Models for Image Captioning: The Quirks and What
    Works, arXiv 1505.01809 ("unique captions").
    """
    return len(set(texts)) / len(texts) if texts else float("nan")


def repetitions(captions: Sequence[Tokens], n: int = ORDER) -> np.ndarray:
    """seq-rep-n of every caption [captions]: the share of its n-grams that it has written before.

    1 - distinct n-grams / n-grams, Welleck, Kulikov, Roller, Dinan, Cho, Weston: Neural Text Generation with
    Unlikelihood Training, arXiv 1908.04319, section 6. A caption of fewer than n tokens repeats none: 0.
    """
    return np.array([_repetition(list(runs(tokens, n))) for tokens in captions], dtype=np.float64)


def repetition(captions: Sequence[Tokens], n: int = ORDER) -> float:
    """The mean of `repetitions`, between 0 and 1; NaN for no captions."""
    return float(repetitions(captions, n).mean()) if captions else float("nan")


def _repetition(grams: Sequence[tuple[str, ...]]) -> float:
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
