"""CIDEr-D and CIDEr: how close a caption is to the consensus of the references, rare n-grams weighing more.

Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation, CVPR 2015. What coco-caption and most
papers report as CIDEr is CIDEr-D.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from xmodal_kedro.captioning.metrics.bleu import ngrams, runs
from xmodal_kedro.captioning.metrics.scores import Scores, Tokens, check_references

ORDER = 4
SIGMA = 6.0  # tokens of difference in length that CIDEr-D forgives
SCALE = 10.0

Gram = tuple[str, ...]
Vector = tuple[dict[Gram, float], float]  # weights and their norm, of n-grams of one length


class Frequencies:
    """In how many documents n-grams occur; the references of one image are one document."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """Count.

        Args:
            references: Tokens of every reference of every image of a corpus, such as those of the evaluated images,
                or those of train.

        Raises:
            ValueError: There are fewer than two images: every n-gram would weigh nothing.
        """
        if len(references) < 2:
            raise ValueError(
                f"CIDEr weighs n-grams by how few images have them, and {len(references)} image(s) are too few to "
                "tell: score at least two, or give the references of a larger corpus."
            )
        counts: Counter[Gram] = Counter()
        for texts in references:
            document: set[Gram] = set()
            for text in texts:
                for n in range(1, ORDER + 1):
                    document.update(runs(text, n))
            counts.update(document)
        self.documents = len(references)
        self.unseen = math.log(self.documents)  # the weight of what no document has
        self.weights = {gram: self.unseen - math.log(count) for gram, count in counts.items()}

    def vectors(self, tokens: Tokens) -> list[Vector]:
        """The TF-IDF vector of a text for each n."""
        found, weight = [], self.weights.get
        for n in range(1, ORDER + 1):
            weights = {gram: k * weight(gram, self.unseen) for gram, k in ngrams(tokens, n).items()}
            found.append((weights, math.hypot(*weights.values())))
        return found


def cider_d(
    captions: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: Frequencies | None = None,
    *,
    sigma: float = SIGMA,
) -> Scores:
    """CIDEr-D, between 0 and 10: repeated n-grams do not pay, and neither does another length.

    Args:
        captions: [n] tokens of one caption per image.
        references: [n] tokens of every reference of the image.
        frequencies: Of a corpus; by default of these references. A score depends on them: compare only scores of the
            same corpus.
        sigma: Standard deviation of the penalty on the difference in length, in tokens.

    Raises:
        ValueError: As `check_references`; or fewer than two images, and no frequencies.
    """
    return _score(captions, references, frequencies, sigma)


def cider(
    captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], frequencies: Frequencies | None = None
) -> Scores:
    """CIDEr, between 0 and 10: the plain cosines of the paper's first definition, times 10, without its stemming.

    Arguments and errors as in `cider_d`.
    """
    return _score(captions, references, frequencies, None)


class CiderReward:
    """CIDEr-D of any number of captions of an image, as a reward; equal to `cider_d` with the same frequencies."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """Count the frequencies.

        Args:
            references: [n] tokens of every reference of every image of train.

        Raises:
            ValueError: There are fewer than two images.
        """
        self.references = references
        self.frequencies = Frequencies(references)

    def __call__(self, image: int, captions: Sequence[Tokens]) -> list[float]:
        """Rewards of captions of an image, whose references are weighed once for all of them."""
        return _each(captions, self.references[image], self.frequencies, SIGMA)


def _score(
    captions: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: Frequencies | None,
    sigma: float | None,
) -> Scores:
    """CIDEr-D, or CIDEr where sigma is None."""
    check_references(captions, references)
    frequencies = frequencies or Frequencies(references)
    pairs = zip(captions, references, strict=True)
    return Scores.mean_of([_each([caption], texts, frequencies, sigma)[0] for caption, texts in pairs])


def _each(
    captions: Sequence[Tokens], references: Sequence[Tokens], frequencies: Frequencies, sigma: float | None
) -> list[float]:
    """Scores of captions of one image."""
    theirs = [(len(text), frequencies.vectors(text)) for text in references]
    each = []
    for caption in captions:
        ours, total = frequencies.vectors(caption), 0.0
        for length, vectors in theirs:
            cosine = sum(map(_clipped if sigma else _plain, ours, vectors)) / ORDER
            total += cosine * math.exp(-((len(caption) - length) ** 2) / (2 * sigma**2)) if sigma else cosine
        each.append(SCALE * total / len(theirs))
    return each


def _plain(caption: Vector, reference: Vector) -> float:
    (ours, norm), (theirs, their_norm) = caption, reference
    shared = ours.keys() & theirs.keys()  # a set: fsum gives the same sum in any order
    if not shared or not norm or not their_norm:
        return 0.0
    return math.fsum(ours[gram] * theirs[gram] for gram in shared) / (norm * their_norm)


def _clipped(caption: Vector, reference: Vector) -> float:
    (ours, norm), (theirs, their_norm) = caption, reference
    shared = ours.keys() & theirs.keys()  # a set: fsum gives the same sum in any order
    if not shared or not norm or not their_norm:
        return 0.0
    return math.fsum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in shared) / (norm * their_norm)
