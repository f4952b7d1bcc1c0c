"""Caption metrics written out from their papers' formulas: lists, counts and tables instead of counters and bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

Text = Sequence[str]


def grams(text: Text, n: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def bleu(captions: Sequence[Text], references: Sequence[Sequence[Text]], order: int) -> float:
    """Papineni et al. 2002, sections 2.1 to 2.3: BP * exp(sum of log p_n / N), 0 where a p_n is 0."""
    logs = 0.0
    for n in range(1, order + 1):
        clipped = total = 0
        for caption, texts in zip(captions, references, strict=True):
            for gram in set(grams(caption, n)):
                count = grams(caption, n).count(gram)
                clipped += min(count, max(grams(text, n).count(gram) for text in texts))
                total += count
        if clipped == 0:
            return 0.0
        logs += math.log(clipped / total) / order
    c = sum(len(caption) for caption in captions)
    r = 0
    for caption, texts in zip(captions, references, strict=True):
        lengths = sorted(len(text) for text in texts)  # of two that are as close, the shorter
        r += min(lengths, key=lambda length: abs(length - len(caption)))
    return (1.0 if c > r else math.exp(1 - r / c)) * math.exp(logs)


def common(a: Text, b: Text) -> int:
    """Length of the longest common subsequence by its recursion."""

    @cache
    def of(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return of(i - 1, j - 1) + 1
        return max(of(i - 1, j), of(i, j - 1))

    return of(len(a), len(b))


def rouge_l(caption: Text, references: Sequence[Text]) -> float:
    """Lin 2004, section 3: F = (1 + b^2) R P / (R + b^2 P), with the best R and the best P, b = 1.2."""
    if not caption:
        return 0.0
    p = max(common(caption, text) / len(caption) for text in references)
    r = max(common(caption, text) / len(text) for text in references if text)
    return (1 + 1.2**2) * r * p / (r + 1.2**2 * p) if p else 0.0


def cider(
    captions: Sequence[Text], references: Sequence[Sequence[Text]], corpus: Sequence[Sequence[Text]], d: bool
) -> list[float]:
    """Vedantam et al. 2015, equations 1 to 3, and 4 for CIDEr-D; times 10 both."""
    found = []
    for caption, texts in zip(captions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            for text in texts:
                everything = sorted({*grams(caption, n), *grams(text, n)})
                idf = [
                    math.log(len(corpus) / max(1, sum(any(gram in grams(s, n) for s in image) for image in corpus)))
                    for gram in everything
                ]
                # h_k counts; CIDEr's term frequencies are shares, which a cosine does not see
                g_c = [grams(caption, n).count(gram) * weight for gram, weight in zip(everything, idf, strict=True)]
                g_s = [grams(text, n).count(gram) * weight for gram, weight in zip(everything, idf, strict=True)]
                norms = math.hypot(*g_c) * math.hypot(*g_s)
                if norms == 0:
                    continue
                left = [min(x, y) for x, y in zip(g_c, g_s, strict=True)] if d else g_c
                cosine = sum(x * y for x, y in zip(left, g_s, strict=True)) / norms
                total += cosine * (math.exp(-((len(caption) - len(text)) ** 2) / (2 * 6.0**2)) if d else 1.0)
        found.append(10 * total / len(texts) / 4)
    return found


def random_captions(rng, images: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions and one to five references over few tokens, with repeated n-grams and every length from 0 (1) to 9."""
    captions = [list(rng.choice(list("abcd"), size=rng.integers(0, 10))) for _ in range(images)]
    references = [
        [list(rng.choice(list("abcd"), size=rng.integers(1, 10))) for _ in range(rng.integers(1, 6))]
        for _ in range(images)
    ]
    return captions, references
