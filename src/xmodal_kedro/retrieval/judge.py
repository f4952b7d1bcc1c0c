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
from xmodal_kedro.retrieval.metrics import Judged, judge_both, metric_table
from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource
from xmodal_kedro.retrieval.slices import Slice

SliceScores = Callable[[Slice], tuple[ScoreSource, ScoreSource | None]]
"""Scores of a slice's texts over its images, and of images over texts where these are not just the transpose."""


def judge_slices(slices: Sequence[Slice], scores: SliceScores, ks: Sequence[int]) -> dict[str, dict[str, list[Judged]]]:
    """Judge every slice that has truth: split -> group -> directions, with the accuracy of a one-to-one matching."""
    found: dict[str, dict[str, list[Judged]]] = {}
    for part in slices:
        if part.relevance.nnz:
            forward, backward = scores(part)
            judged = judge_both(
                forward, part.relevance, ks, backward=backward, clusters=(part.clusters, None), match=assign(forward)
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


def embedding_scores(texts: Embeddings, images: Embeddings) -> SliceScores:
    """Cosines of one member."""
    return lambda part: (EmbeddingScores(texts.take(part.text_ids), images.take(part.image_ids)), None)


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
