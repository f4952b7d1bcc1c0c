"""Captioners, their ensemble and captions that need no model, judged side by side on the same images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from xmodal_kedro.captioning.judge import JUDGED, ByEmbeddings, Judged, judge
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.ensemble import EvaluationConfig
from xmodal_kedro.retrieval.bootstrap import paired_difference

log = logging.getLogger(__name__)

ENSEMBLE = "ensemble"
COMPARISON_COLUMNS = ["split", "captioner", "metric", "difference", "low", "high", "p"]
_IMAGE = ["split", "image_id"]


class Compared(NamedTuple):
    """What comes out, the best at hand first: the ensemble, or the captioner that is best on dev."""

    metrics: pd.DataFrame  # of the best at hand; see `Judged.metrics`
    leaderboard: pd.DataFrame
    comparison: pd.DataFrame
    table: pd.DataFrame  # of the best at hand; see `Judged.table`


def compare(
    by_name: Mapping[str, pd.DataFrame],
    baselines: Mapping[str, Mapping[str, str]],
    captions: pd.DataFrame,
    captioning: CaptioningConfig,
    evaluation: EvaluationConfig,
    clip: ByEmbeddings | None = None,
) -> Compared:
    """Judge everybody on the images of dev and val that all have captions of.

    What a captioner scored by itself does not count here: CIDEr-D weighs n-grams by the images that it is given, and
    these may be fewer.

    Args:
        by_name: Tables of `generate` by captioner, the ensemble as `ensemble`.
        baselines: Captions of dev and val that need no model, by image id; there may be none.
        captions: The caption table, whose texts are the references.
        captioning: `metrics` and `tokeniser`.
        evaluation: How to resample.
        clip: Gives CLIPScore and RefCLIPScore.

    Returns:
        Metrics and table of the best at hand. The leaderboard: columns `split, captioner, images`, then `<metric>`,
        `<metric>.low` and `<metric>.high` of every metric; captioners, ensemble and baselines in this order, on dev and
        on val. The comparison: the best at hand minus each of the others on the same images, by every metric that is a
        mean over images, CIDEr-D first, with its 95 % interval and the p of a randomisation test (see
        `bootstrap.paired_difference`).

    Raises:
        MetricUnavailableError: As `judge`.
        ValueError: As `judge`.
    """
    captioners = sorted(by_name, key=lambda name: name == ENSEMBLE)
    tables = {name: by_name[name] for name in captioners}
    first = tables[captioners[0]]
    for name, texts in baselines.items():
        tables[name] = first[_IMAGE].assign(caption=first["image_id"].map(texts)).dropna(subset=["caption"])
    images = _common_images(tables)
    captions = captions[pd.MultiIndex.from_frame(captions[_IMAGE]).isin(images)]
    judged = {
        name: judge(table.set_index(_IMAGE).loc[images].reset_index(), captions, captioning, clip)
        for name, table in tables.items()
    }
    cider_d = captioning.named("cider_d")
    best = _best(judged, captioners, cider_d)
    metrics = {name: found.metrics(evaluation) for name, found in judged.items()}
    others = {name: found for name, found in judged.items() if name != best}
    comparison = _differences(judged[best], others, cider_d, evaluation.seed)
    return Compared(metrics[best], _leaderboard(metrics), comparison, judged[best].table())


def _common_images(tables: Mapping[str, pd.DataFrame]) -> pd.MultiIndex:
    """Split and id of the images of dev and val that every table has, in the order of the first."""
    found = [pd.MultiIndex.from_frame(table.loc[table["split"].isin(JUDGED), _IMAGE]) for table in tables.values()]
    common = found[0]
    for images in found[1:]:
        common = common[common.isin(images)]
    if missing := len(set().union(*found)) - len(common):
        log.warning(
            "%d images of dev and val are not compared: nothing is written about them, or not everybody has a caption "
            "of them",
            missing,
        )
    return common


def _best(judged: Mapping[str, Judged], captioners: list[str], metric: str) -> str:
    """The ensemble, or the captioner that is best on dev; val is for reporting, and nothing is chosen on it."""
    if ENSEMBLE in captioners:
        return ENSEMBLE
    if "dev" not in judged[captioners[0]].scores:
        if len(captioners) > 1:
            log.warning("There is no dev split to choose a captioner by: '%s', the first, is reported", captioners[0])
        return captioners[0]
    return max(captioners, key=lambda name: judged[name].scores["dev"][metric].value)


def _leaderboard(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The metric tables side by side, a row per split and captioner."""
    rows = []
    for split in JUDGED:
        for name, table in metrics.items():
            of_split = table[table["split"] == split]
            if of_split.empty:
                continue
            row: dict[str, object] = {"split": split, "captioner": name, "images": int(of_split["images"].iloc[0])}
            for cell in of_split.itertuples():
                metric = str(cell.metric)
                row |= {metric: cell.value, f"{metric}.low": cell.low, f"{metric}.high": cell.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _differences(best: Judged, others: Mapping[str, Judged], first_metric: str, seed: int) -> pd.DataFrame:
    """The best minus each of the others, paired by image."""
    rows = []
    for split, scores in best.scores.items():
        means = sorted((name for name, found in scores.items() if not found.pooled), key=lambda n: n != first_metric)
        for name, other in others.items():
            for metric in means:
                found = paired_difference(scores[metric].each, other.scores[split][metric].each, seed=seed)
                rows.append((split, name, metric, *found))
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
