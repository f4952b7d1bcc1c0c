"""ROUGE-L as coco-caption computes it: the longest common subsequence, with beta 1.2.

Lin: ROUGE: A Package for Automatic Evaluation of Summaries, ACL workshop 2004.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_kedro.captioning.metrics.scores import Scores, Tokens, check_references

BETA = 1.2  # how much more recall weighs than precision


def rouge_l(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Scores:
    """ROUGE-L, between 0 and 1: the F-measure of the best precision and the best recall among the references.

    The two may come from different references, as in coco-caption. An empty caption scores 0.

    Args:
        captions: [n] tokens of one caption per image.
        references: [n] tokens of every reference of the image.

    Raises:
        ValueError: As `check_references`.
    """
    check_references(captions, references)
    return Scores.mean_of([_f_measure(*pair) for pair in zip(captions, references, strict=True)])


def common_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence.

    One integer holds a row of the usual table, a bit per token of `a`: len(b) additions instead of len(a) * len(b)
    steps. Hyyrö: Bit-parallel LCS-length computation revisited, AWOCA 2004.
    """
    where: dict[str, int] = {}
    for position, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << position
    full = (1 << len(a)) - 1
    row = full  # a zero bit is a step of the table's row
    for token in b:
        matches = row & where.get(token, 0)
        row = (row + matches) | (row - matches)
    return len(a) - (row & full).bit_count()


def _f_measure(caption: Tokens, references: Sequence[Tokens]) -> float:
    common = [(common_length(caption, reference), len(reference)) for reference in references if len(reference)]
    longest = max(length for length, _ in common)
    if longest == 0:
        return 0.0
    precision, recall = longest / len(caption), max(length / of for length, of in common)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
