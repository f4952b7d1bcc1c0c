"""What a caption metric gives back: one value for all images, one score for each, and how sure the value is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xmodal_kedro.retrieval import bootstrap

Tokens = Sequence[str]


@dataclass(frozen=True, eq=False)
class Scores:
    """A metric over captions.

    Attributes:
        value: Of all images together; the mean of `each` unless `pooled`.
        each: [n] of each image, in the order in which the captions came.
        pooled: The value is worked out from the counts of all images together, and is not the mean of `each`.
    """

    value: float
    each: np.ndarray
    pooled: bool = False

    @classmethod
    def mean_of(cls, each: Sequence[float] | np.ndarray) -> Scores:
        """The metric whose value is the mean of its scores [n]."""
        scores = np.asarray(each, dtype=np.float64)
        return cls(float(scores.mean()), scores)

    def interval(self, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of `value` over images.

        Args:
            resamples: How many.
            level: Share of resamples inside.
            seed: Of the resampling.

        Returns:
            Low and high end; NaN without resamples, and where the value is pooled and its counts are not known.
        """
        if self.pooled:
            return float("nan"), float("nan")
        low, high = bootstrap.interval(self.each, resamples=resamples, level=level, seed=seed)
        return float(low), float(high)


def check_references(
    captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], ids: Sequence[str] | None = None
) -> None:
    """Refuse what no metric can score.

    Args:
        captions: [n] the tokens of one caption per image; a caption may be empty.
        references: [n] the tokens of every reference of the image.
        ids: [n] of the images, for the message; by default their numbers.

    Raises:
        ValueError: There are no captions, not as many as sets of references, or images without a reference that has
            a token (they are named).
    """
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions cannot be held to the references of {len(references)} images.")
    if not captions:
        raise ValueError("there are no captions to score.")
    empty = [row for row, texts in enumerate(references) if not any(len(text) for text in texts)]
    if empty:
        raise ValueError(
            f"images without a reference to compare with: {named([ids[row] if ids else row for row in empty])}; give "
            "each at least one with more than punctuation, or leave the images out."
        )


def named(ids: Sequence[object], limit: int = 5) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(repr(one) for one in ids[:limit]) + more
