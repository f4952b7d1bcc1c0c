"""Zero-shot completion, one row and one candidate at a time (A3R, arXiv 2306.06691, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def complete_row(
    known: dict[str, str],
    offered: dict[str, list[str]],
    sentence: Callable[[str | None, str | None, str | None], str],
    image: np.ndarray,
    feature_of: dict[str, np.ndarray],
) -> tuple[dict[str, str], float, float | None]:
    """The best (colour, brand, type) for one image: all parts, the cosine, and its lead over the runner-up.

    `offered` has the entries of the parts that may be completed; a part that is known has that one choice, a part that
    is neither known nor offered has none.
    """

    def choices(part: str) -> list[str | None]:
        if part in known:
            return [known[part]]
        return list(offered.get(part) or [None])

    best, best_score, scores = None, None, []
    for color in choices("color"):
        for brand in choices("brand"):
            for kind in choices("type"):
                feature = feature_of[sentence(color, brand, kind)]
                score = sum(float(a) * float(b) for a, b in zip(image, feature, strict=True))
                scores.append(score)
                if best_score is None or score > best_score + 1e-6:
                    best, best_score = (color, brand, kind), score
    assert best is not None
    assert best_score is not None
    scores.remove(best_score)
    parts = {part: words for part, words in zip(("color", "brand", "type"), best, strict=True) if words is not None}
    return parts, best_score, best_score - max(scores) if scores else None
