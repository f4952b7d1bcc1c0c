"""Captions held to all references of their images: metrics with intervals, and the scores of every image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from xmodal_kedro.captioning.diversity import distinct_captions, repetitions
from xmodal_kedro.captioning.metrics import TOKENISERS, MetricUnavailableError, Scores, evaluate, unavailable
from xmodal_kedro.captioning.metrics.evaluate import References
from xmodal_kedro.captioning.references import references_of
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.ensemble import EvaluationConfig

log = logging.getLogger(__name__)

JUDGED = ("dev", "val")
TOLD = ("image_id", "caption", "references")  # of a judged image; columns after these show what went wrong
METRIC_COLUMNS = ["split", "metric", "value", "low", "high", "images"]
BETWEEN = " | "  # references in a cell

ByEmbeddings = Callable[[Mapping[str, str], References], dict[str, Scores]]
"""CLIPScore and RefCLIPScore, for captions and references as `evaluate` takes them; see `clip.ClipScores`."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Judged captions, by split.

    Attributes:
        captions: A row per judged image: `image_id, caption, references`, `repetition_<tokeniser>`, and `ended, tokens`
            where the captions came with them.
        scores: By the name of the metric; `each` in the order of the rows.
    """

    captions: dict[str, pd.DataFrame]
    scores: dict[str, dict[str, Scores]]

    def metrics(self, evaluation: EvaluationConfig) -> pd.DataFrame:
        """Columns `split, metric, value, low, high, images`: the scores, and what shows a captioner that fails.

        These are `distinct_captions`, `repetition_<tokeniser>` (see `diversity`), `ended` (the share of captions that
        were not cut) and `tokens` (their mean number). Intervals are percentile bootstraps over images, NaN where there
        is none.
        """
        rows: list[tuple[str, str, float, float, float, int]] = []
        for split, captions in self.captions.items():
            distinct = Scores(distinct_captions(captions["caption"].tolist()), np.array([]), pooled=True)
            watched = {name: Scores.mean_of(captions[name].to_numpy()) for name in captions.columns[len(TOLD) :]}
            for name, scores in {**self.scores[split], "distinct_captions": distinct, **watched}.items():
                interval = scores.interval(resamples=evaluation.bootstrap, seed=evaluation.seed)
                rows.append((split, name, scores.value, *interval, len(captions)))
        return pd.DataFrame(rows, columns=METRIC_COLUMNS)

    def table(self) -> pd.DataFrame:
        """Columns `split, image_id, caption, references`, and a column per metric; a row per judged image."""
        tables = []
        for split, captions in self.captions.items():
            told = captions[["image_id", "caption"]].assign(references=captions["references"].map(BETWEEN.join))
            told.insert(0, "split", split)
            tables.append(told.assign(**{name: scores.each for name, scores in self.scores[split].items()}))
        return pd.concat(tables, ignore_index=True)


def judge(
    generated: pd.DataFrame, captions: pd.DataFrame, captioning: CaptioningConfig, clip: ByEmbeddings | None = None
) -> Judged:
    """Hold the captions of dev and val to all references of their images.

    Images without a reference, or without a caption, are counted in the log and left out, as metrics are named there
    that cannot be computed in this installation.

    Args:
        generated: Columns `split, image_id, caption`, with `ended, tokens` where they are known.
        captions: The caption table, whose texts are the references.
        captioning: `metrics` and `tokeniser`.
        clip: Gives CLIPScore and RefCLIPScore.

    Raises:
        MetricUnavailableError: CIDEr-D itself cannot be computed; the reason is given.
        ValueError: Neither split has two images with captions and references.
    """
    names = computable(captioning)
    found = Judged({}, {})
    for split in JUDGED:
        rows = _with_references(generated[generated["split"] == split], captions, captioning, split)
        if len(rows) < 2:  # CIDEr weighs n-grams by how few of the images have them
            if len(rows):
                log.warning("%s is not judged: one image with references is too few", split)
            continue
        by_image = dict(zip(rows["image_id"], rows["caption"], strict=True))
        references = dict(zip(rows["image_id"], rows["references"], strict=True))
        found.captions[split] = rows
        found.scores[split] = evaluate(by_image, references, names)
        if clip is not None:
            found.scores[split] |= clip(by_image, references)
    if not found.captions:
        raise ValueError(
            "captions cannot be judged: neither dev nor val has two images with a caption and a reference. Give one of "
            "them images with texts, or leave the captioners out"
        )
    return found


def computable(captioning: CaptioningConfig) -> list[str]:
    """The metrics of a recipe, with their tokeniser, that this installation computes; the others go to the log.

    Raises:
        MetricUnavailableError: CIDEr-D is not among them.
    """
    names = [captioning.named(metric) for metric in captioning.metrics]
    reasons = {name: reason for name in names if (reason := unavailable(name))}
    if reason := reasons.get(captioning.named("cider_d")):
        raise MetricUnavailableError(f"captioning.tokeniser is '{captioning.tokeniser}': {reason}")
    if reasons:
        _say_once("; ".join(f"{name} ({reason.rstrip('.')})" for name, reason in reasons.items()))
    return [name for name in names if name not in reasons]


@cache
def _say_once(reasons: str) -> None:
    """Every captioner of a run is judged by itself, and all of them lack the same."""
    log.warning("Metrics that cannot be computed here are left out: %s", reasons)


def _with_references(
    generated: pd.DataFrame, captions: pd.DataFrame, captioning: CaptioningConfig, split: str
) -> pd.DataFrame:
    """The rows of a split whose images can be judged, in their order."""
    cut = TOKENISERS[captioning.tokeniser]
    references = {image_id: texts for image_id, texts in references_of(captions, split).items() if any(map(cut, texts))}
    known = generated["image_id"].isin(list(references))
    left_out = {
        "without a reference": int((~known).sum()),
        "without a caption": len(references.keys() - set(generated["image_id"])),
    }
    if reasons := [f"{count} images {why}" for why, count in left_out.items() if count]:
        log.warning("Not judged of %s: %s", split, ", ".join(reasons))
    rows = generated[known].reset_index(drop=True)
    return pd.DataFrame(
        {
            **{"image_id": rows["image_id"], "caption": rows["caption"]},
            "references": [references[image_id] for image_id in rows["image_id"]],
            captioning.named("repetition"): repetitions([cut(text) for text in rows["caption"]]),
            **{name: rows[name] for name in ("ended", "tokens") if name in rows},
        }
    )
