"""Scores captions against all references of their images by metrics that are asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from xmodal_kedro.captioning.metric_names import BY_EMBEDDINGS, parse
from xmodal_kedro.captioning.metrics.bleu import BleuScores, bleu
from xmodal_kedro.captioning.metrics.cider import Frequencies, cider, cider_d
from xmodal_kedro.captioning.metrics.meteor import meteor, meteor_unavailable
from xmodal_kedro.captioning.metrics.rouge import rouge_l
from xmodal_kedro.captioning.metrics.scores import Scores, check_references, named
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS, jieba_unavailable

References = Mapping[str, Sequence[str]]
"""Image id to all sentences that people wrote about it."""


class MetricUnavailableError(RuntimeError):
    """A metric was asked for that this installation cannot compute."""


class Cut:
    """Captions and references of the same images, cut by one tokeniser; what metrics share is computed once."""

    def __init__(self, captions: Mapping[str, str], references: References, tokeniser: str) -> None:
        """Cut all texts; arguments and errors as in `evaluate`."""
        cut = TOKENISERS[tokeniser]
        self.captions = [cut(text) for text in captions.values()]
        self.references = [[cut(text) for text in references[image]] for image in captions]
        check_references(self.captions, self.references, list(captions))

    @cached_property
    def bleu(self) -> list[BleuScores]:
        """Of every order."""
        return bleu(self.captions, self.references)

    @cached_property
    def frequencies(self) -> Frequencies:
        """Of the references."""
        return Frequencies(self.references)


METRICS: dict[str, Callable[[Cut], Scores]] = {
    "bleu_1": lambda cut: cut.bleu[0],
    "bleu_2": lambda cut: cut.bleu[1],
    "bleu_3": lambda cut: cut.bleu[2],
    "bleu_4": lambda cut: cut.bleu[3],
    "rouge_l": lambda cut: rouge_l(cut.captions, cut.references),
    "cider": lambda cut: cider(cut.captions, cut.references, cut.frequencies),
    "cider_d": lambda cut: cider_d(cut.captions, cut.references, cut.frequencies),
    "meteor": lambda cut: meteor(cut.captions, cut.references),
}


def evaluate(captions: Mapping[str, str], references: References, metrics: Sequence[str]) -> dict[str, Scores]:
    """Score captions.

    Args:
        captions: Image id to its caption, which may be empty.
        references: The same image ids to their sentences.
        metrics: Names such as `cider_d_characters` (see `metric_names.parse`).

    Returns:
        Name to scores, in the order of `metrics`; `each` of them in the order of `captions`.

    Raises:
        ValueError: A name is unknown or needs embeddings, images have no caption or no references (they are named),
            or one text is given where a list of texts is expected.
        MetricUnavailableError: A metric cannot be computed here; the reason is given.
    """
    wanted = {name: parse(name) for name in metrics}
    if embedded := [name for name in metrics if name in BY_EMBEDDINGS]:
        raise ValueError(f"{', '.join(embedded)} compare embeddings: use clip_score or ref_clip_score with a member's.")
    if reasons := [f"{name}: {reason}" for name in metrics if (reason := unavailable(name))]:
        raise MetricUnavailableError("\n".join(reasons))
    _check_ids(captions, references)
    cuts: dict[str, Cut] = {}
    found = {}
    for name, (metric, tokeniser) in wanted.items():
        if tokeniser not in cuts:
            cuts[tokeniser] = Cut(captions, references, tokeniser)
        found[name] = METRICS[metric](cuts[tokeniser])
    return found


def unavailable(name: str) -> str | None:
    """Why a metric cannot be computed in this installation, or None.

    Raises:
        ValueError: There is no such metric.
    """
    metric, tokeniser = parse(name)
    return (jieba_unavailable() if tokeniser == "words" else None) or (
        meteor_unavailable() if metric == "meteor" else None
    )


def _check_ids(captions: Mapping[str, str], references: References) -> None:
    alone = [image for image in captions if image not in references]
    if alone:
        raise ValueError(f"captions of images that have no references: {named(alone)}.")
    without = [image for image in references if image not in captions]
    if without:
        raise ValueError(f"images with references that have no caption: {named(without)}; every image must count.")
    bare = [image for image in captions if isinstance(references[image], str)]
    if bare:
        raise ValueError(f"references must be lists of texts, and are single texts for {named(bare)}.")
