"""BLEU-1 to BLEU-4 with the closest reference length, equal to coco-caption's to the last digits.

Papineni, Roukos, Ward, Zhu: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from xmodal_kedro.captioning.metrics.scores import Scores, Tokens, check_references

ORDER = 4
# coco-caption adds these to keep from dividing by zero; with them, no match at all comes out as about 1e-4, not 0.
TINY, SMALL = 1e-15, 1e-9
AT_ONCE = 1 << 21  # numbers in a block of resamples


@dataclass(frozen=True, eq=False)
class BleuScores(Scores):
    """BLEU of one order.

    `value` pools the counts of all images before it divides, as the paper defines it: it is not the mean of `each`,
    which holds BLEU of every image as if it were alone.

    Attributes:
        order: Longest n-gram that counts.
        counts: [n, 10] of each image: matched n-grams for n = 1..4, n-grams of the caption, its length, the closest
            reference length.
    """

    pooled: bool = True
    order: int = ORDER
    counts: np.ndarray = field(default_factory=lambda: np.empty((0, 2 * ORDER + 2)))

    def interval(self, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of the pooled value: images are drawn, and their counts pooled anew.

        Koehn: Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004. Arguments and result as
        in `Scores.interval`.
        """
        if resamples == 0:
            return float("nan"), float("nan")
        n = len(self.counts)
        rng = np.random.default_rng(seed)
        found, block = [], max(1, AT_ONCE // n)
        for start in range(0, resamples, block):
            times = rng.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start))  # [b, n]
            found.append(_from_counts(times @ self.counts)[:, self.order - 1])
        low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def bleu(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[BleuScores]:
    """BLEU-1 to BLEU-4, between 0 and 1.

    Among reference lengths that are equally close to the caption's, the shorter one counts. A caption with fewer than
    n tokens has no n-grams: alone it scores near 0 at that order, and it takes nothing from the pooled value.

    Args:
        captions: [n] tokens of one caption per image.
        references: [n] tokens of every reference of the image.

    Raises:
        ValueError: As `check_references`.
    """
    check_references(captions, references)
    counts = np.array([_counts(*pair) for pair in zip(captions, references, strict=True)], dtype=np.float64)
    each, whole = _from_counts(counts), _from_counts(counts.sum(axis=0))
    return [BleuScores(float(whole[k]), each[:, k], order=k + 1, counts=counts) for k in range(ORDER)]


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n tokens occurs."""
    return Counter(runs(tokens, n))


def runs(tokens: Tokens, n: int) -> Iterable[tuple[str, ...]]:
    """Each run of n tokens, from the left."""
    return zip(*[tokens[start:] for start in range(n)], strict=False)


def _counts(caption: Tokens, references: Sequence[Tokens]) -> list[int]:
    matched = []
    for n in range(1, ORDER + 1):
        found = ngrams(caption, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, n)  # the most often that any one reference has it
        matched.append(sum(min(count, most[gram]) for gram, count in found.items()))
    possible = [max(0, len(caption) - n + 1) for n in range(1, ORDER + 1)]
    closest = min((abs(len(reference) - len(caption)), len(reference)) for reference in references)[1]
    return [*matched, *possible, len(caption), closest]


def _from_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU of every order [..., 4] from counts [..., 10]."""
    matched, possible = counts[..., :ORDER], counts[..., ORDER : 2 * ORDER]
    precision = (matched + TINY) / (possible + SMALL)
    ratio = (counts[..., -2:-1] + TINY) / (counts[..., -1:] + SMALL)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, ORDER + 1)) * brevity
