"""Judge a member on slices: full gallery of each group, both directions, many-to-many relevance, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch

from xmodal_kedro.config.ensemble import EvaluationConfig
from xmodal_kedro.config.member import EmbedConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.retrieval.embed import embed_images, embed_texts
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.metrics import Judged, by_label, judge_both, metric_table
from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource
from xmodal_kedro.retrieval.slices import Slice

SliceScores = Callable[[Slice], tuple[ScoreSource, ScoreSource | None]]
"""Scores of a slice's texts over its images, and of images over texts where these are not just the transpose."""

ATTRIBUTE_COLUMNS = [
    *("member", "split", "group", "attribute", "label", "direction", "metric", "value", "low", "high", "chance"),
    *("n_queries", "n_skipped", "n_gallery", "protocol"),
]


def judge_slices(
    slices: Sequence[Slice], scores: SliceScores, ks: Sequence[int], also: Sequence[str] = ()
) -> dict[str, dict[str, list[Judged]]]:
    """Judge every slice that has truth: split -> group -> directions, with the accuracy of a one-to-one matching.

    `also` names metrics beside those of every table.
    """
    found: dict[str, dict[str, list[Judged]]] = {}
    for part in slices:
        if part.relevance.nnz:
            forward, backward = scores(part)
            clusters, match = (part.clusters, None), assign(forward)
            judged = judge_both(
                forward, part.relevance, ks, also=also, backward=backward, clusters=clusters, match=match
            )
            found.setdefault(part.split, {})[part.group] = list(judged)
    return found


def judged_table(member: str, judged: dict[str, dict[str, list[Judged]]], evaluation: EvaluationConfig) -> pd.DataFrame:
    """The metric table of `metrics.metric_table` with columns `member` and `split` in front."""
    tables = []
    for split, groups in judged.items():
        table = metric_table(groups, bootstrap=evaluation.bootstrap, seed=evaluation.seed)
        table.insert(0, "split", split)
        table.insert(0, "member", member)
        tables.append(table)
    if not tables:
        raise ValueError(f"{member} cannot be judged: neither dev nor val has a pair of an image and a text")
    return pd.concat(tables, ignore_index=True)


def attribute_table(
    member: str,
    judged: dict[str, dict[str, list[Judged]]],
    slices: Sequence[Slice],
    labels: pd.DataFrame,
    evaluation: EvaluationConfig,
    at_least: int = 20,
) -> pd.DataFrame:
    """The t2i results of the texts of each attribute label; every text keeps its result in the full gallery.

    Args:
        member: For the table.
        judged: Of `judge_slices`.
        slices: Those that were judged.
        labels: Of `slices.attribute_labels`: indexed by text id, a column per attribute.
        evaluation: How to resample.
        at_least: Labels with fewer judged texts in a slice are left out: their intervals would say nothing.

    Returns:
        The columns of `judged_table` and, after `group`, `attribute` and `label`, such as `color` and `white`; in each
        slice and attribute the labels of most texts first. No rows where no label has enough texts.
    """
    tables = []
    for part in slices:
        results = judged.get(part.split, {}).get(part.group)
        if not results:
            continue
        of_texts = labels.reindex(part.text_ids)
        for attribute in labels.columns:
            for label, found in by_label(results[0], of_texts[attribute].tolist(), at_least).items():
                table = metric_table({part.group: [found]}, bootstrap=evaluation.bootstrap, seed=evaluation.seed)
                tables.append(table.assign(member=member, split=part.split, attribute=attribute, label=label))
    if not tables:
        return pd.DataFrame(columns=ATTRIBUTE_COLUMNS)
    return pd.concat(tables, ignore_index=True)[ATTRIBUTE_COLUMNS]


def embedding_scores(texts: Embeddings, images: Embeddings) -> SliceScores:
    """Cosines of one member."""

    def of(part: Slice) -> tuple[ScoreSource, None]:
        ids = part.text_ids, part.image_ids
        return EmbeddingScores(texts.take(part.text_ids), images.take(part.image_ids), ids=ids), None

    return of


def dev_metrics(
    slices: Sequence[Slice],
    images: ImageStore,
    embed: EmbedConfig,
    evaluation: EvaluationConfig,
    device: torch.device,
) -> Callable[[Backbone], dict[str, float]]:
    """What the training loop asks after each epoch.

    Args:
        slices: Of dev.
        images: Where their pixels lie.
        embed: How to encode.
        evaluation: Its `ks`; intervals are left out.
        device: Where to encode.

    Returns:
        A function from a backbone to `<direction>.<metric>` over all groups, such as `t2i.map_at_10`.
    """

    def evaluate(backbone: Backbone) -> dict[str, float]:
        def scores(part: Slice) -> tuple[ScoreSource, None]:
            rows = images.rows(part.image_ids)
            texts = embed_texts(backbone, part.texts, embed.batch_size, device, embed.precision)
            pixels = embed_images(backbone, images.pixels, rows, embed.batch_size, device, embed.precision)
            return EmbeddingScores(texts, pixels), None

        groups = judge_slices(slices, scores, evaluation.ks).get("dev", {})
        table = metric_table(groups, bootstrap=0)
        pooled = table[table["group"] == table["group"].iloc[-1]]  # `all`, or the only group
        return {f"{row.direction}.{row.metric}": float(row.value) for row in pooled.itertuples()}

    return evaluate
