"""Nodes of train: one member from random or pretrained weights to a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import MemberConfig

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from xmodal_kedro.data.image_store import ImageStore
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Figure = ImageStore = Any

log = logging.getLogger(__name__)


def train_member(
    captions: DataFrame,
    images: ImageStore,
    member: MemberConfig,
    evaluation: EvaluationConfig,
    relevance: RelevanceConfig,
    runtime: RuntimeConfig,
) -> tuple[Path, DataFrame]:
    """Train a member, judged on dev after each epoch; returns its staged checkpoint and a row per epoch."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.datasets.directory import staging
    from xmodal_kedro.models import build
    from xmodal_kedro.models.checkpoint import write_checkpoint
    from xmodal_kedro.retrieval.judge import dev_metrics
    from xmodal_kedro.retrieval.slices import cut_slices
    from xmodal_kedro.tracking.sink import metric_sink
    from xmodal_kedro.training.device import pick_device
    from xmodal_kedro.training.examples import train_examples
    from xmodal_kedro.training.loop import train

    device = pick_device(runtime)
    examples = train_examples(captions, images, relevance, member.train.loss)
    backbone = build(member.backbone, member.train.seed, texts=examples["text"].unique().tolist())
    slices = cut_slices(captions, relevance, ["dev"])
    evaluate = dev_metrics(slices, images, member.embed, evaluation, device) if slices else None
    log.info("%s: %d pairs on %s", member.name, len(examples), device)
    with metric_sink(member.name) as sink:

        def report(step: int, numbers: dict[str, float]) -> None:
            sink(step, numbers)
            if f"dev/{member.train.metric}" in numbers:
                value = numbers[f"dev/{member.train.metric}"]
                log.info("%s: after step %d dev %s is %.4f", member.name, step, member.train.metric, value)

        result = train(backbone, images.pixels, examples, evaluate, member.train, device, report, member.name)
    log.info("%s: kept epoch %d of %d", member.name, result.best_epoch, int(result.history["epoch"].max()))
    if result.best_epoch == 0:
        log.warning("%s: no epoch was better on dev than the weights it began with", member.name)
    directory = staging(member.name)
    kept = result.history.set_index("epoch").loc[result.best_epoch].dropna().to_dict()
    made_by = {"captions": table_fingerprint(captions), "images": images.fingerprint}
    write_checkpoint(directory, result.backbone, member, {"epoch": result.best_epoch, **kept}, made_by)
    return directory, result.history


def plot_history(history: DataFrame) -> Figure:
    """Loss, rate and dev metrics over the epochs."""
    from xmodal_kedro.reporting.figures import training_curves

    return training_curves(history)
