"""Nodes of train: one member from random or pretrained weights to a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.config_loader import project_path

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from xmodal_kedro.data.image_store import ImageStore
    from xmodal_kedro.models.backbone import Backbone
    from xmodal_kedro.training.loop import Evaluate
    from xmodal_kedro.training.state import TrainingState
    from xmodal_kedro.training.steps import Report
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Figure = ImageStore = Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainJob:
    """All that a process needs to train a member; plain data, for it may travel to several."""

    member: MemberConfig
    captions: DataFrame
    train_captions: DataFrame  # the same, or the member's own
    images: Path  # of the image store
    evaluation: EvaluationConfig
    relevance: RelevanceConfig
    runtime: RuntimeConfig
    checkpoint: Path  # empty directory for it
    states: Path  # folder of what interrupted trainings go on from
    project: Path  # where relative paths start


def make_train_captions(
    pairs: DataFrame,
    captions: DataFrame,
    prompts: PromptsConfig,
    member: MemberConfig,
    completed: DataFrame | None = None,
) -> DataFrame:
    """The captions of a member with prompts of its own."""
    from xmodal_kedro.data.groups import misspelt_groups
    from xmodal_kedro.data.prompts import member_captions, train_vocabulary

    for problem in misspelt_groups({f"{member.name}.prompts": member.prompts or {}}, pairs["group"].unique()):
        log.warning("%s", problem)
    vocabulary = train_vocabulary(pairs, prompts)
    own = member_captions(pairs, captions, prompts, member.prompts or {}, vocabulary, completed)
    log.info("%s: %d train captions of its own", member.name, (own["split"] == "train").sum())
    return own


def train_member(
    captions: DataFrame,
    images: ImageStore,
    member: MemberConfig,
    evaluation: EvaluationConfig,
    relevance: RelevanceConfig,
    runtime: RuntimeConfig,
    train_captions: DataFrame | None = None,
) -> tuple[Path, DataFrame]:
    """Train a member, judged on dev after each epoch; returns its staged checkpoint and a row per epoch.

    It trains on captions of its own where it has some; all else, the fingerprint too, goes by the shared ones.
    """
    from xmodal_kedro.datasets.directory import staging, training_states
    from xmodal_kedro.training.launch import launch

    directory = staging(member.name)
    own = captions if train_captions is None else train_captions
    recipe = (member, captions, own, images.directory, evaluation, relevance, runtime)
    job = TrainJob(*recipe, directory, training_states(), project_path())
    return directory, launch(train_and_write, job, runtime)


def train_and_write(job: TrainJob) -> DataFrame:
    """Train in this process, together with others if there are some; rank 0 writes the checkpoint.

    A training that was interrupted goes on where it was.

    Returns:
        A row per epoch.
    """
    from xmodal_kedro.data.image_store import ImageStore
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.data.text_cleaning import cleaned
    from xmodal_kedro.losses.gather import rank
    from xmodal_kedro.models import build
    from xmodal_kedro.models.checkpoint import write_checkpoint
    from xmodal_kedro.training.device import pick_device
    from xmodal_kedro.training.examples import train_examples
    from xmodal_kedro.training.loop import train

    member, images, device = job.member, ImageStore.open(job.images), pick_device(job.runtime)
    captions = cleaned(job.train_captions, member.train.clean_text)  # first: texts that become equal share their key
    examples = train_examples(captions, images, job.relevance, member.train.loss)
    texts = examples["text"].unique().tolist()
    backbone = build(member.backbone, member.train.seed, texts, root=job.project)
    if rank() == 0:
        log.info("%s: %d pairs on %s", member.name, len(examples), device)
    with _reports(member) as report:
        evaluate, state = _evaluation(job, images, device), _state(job, backbone, images, device)
        result = train(backbone, images.pixels, examples, evaluate, member.train, device, report, member.name, state)
    if rank() == 0:
        log.info("%s: kept epoch %d of %d", member.name, result.best_epoch, int(result.history["epoch"].max()))
        if result.best_epoch == 0:
            log.warning("%s: no epoch was better on dev than the weights it began with", member.name)
        kept = result.history.set_index("epoch").loc[result.best_epoch].dropna().to_dict()
        made_by = {"captions": table_fingerprint(job.captions), "images": images.fingerprint}
        write_checkpoint(job.checkpoint, result.backbone, member, {"epoch": result.best_epoch, **kept}, made_by)
    return result.history


def _evaluation(job: TrainJob, images: ImageStore, device: torch.device) -> Evaluate | None:
    """What judges the member on dev, if there is a dev."""
    from xmodal_kedro.retrieval.judge import dev_metrics
    from xmodal_kedro.retrieval.slices import cut_slices

    slices = cut_slices(job.captions, job.relevance, ["dev"])
    return dev_metrics(slices, images, job.member.embed, job.evaluation, device) if slices else None


def _state(job: TrainJob, backbone: Backbone, images: ImageStore, device: torch.device) -> TrainingState | None:
    """What training goes on from if it was interrupted; anything that decides the weights makes it another one."""
    import torch

    from xmodal_kedro.data.manifest import fingerprint
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.losses.gather import processes
    from xmodal_kedro.training.state import TrainingState, weights_fingerprint

    if not job.runtime.resume:
        return None
    configs = [job.member.model_dump(), job.evaluation.model_dump(), job.relevance.model_dump()]
    data = [table_fingerprint(job.captions), table_fingerprint(job.train_captions), images.fingerprint]
    machine = [device.type, torch.get_num_threads(), processes()]
    key = fingerprint([configs, data, weights_fingerprint(backbone), machine])
    return TrainingState(job.states, job.member.name, key)


@contextmanager
def _reports(member: MemberConfig) -> Iterator[Report]:
    """Where the numbers of training go: live curves, and the metric that decides also to the log."""
    from xmodal_kedro.tracking.sink import metric_sink

    with metric_sink(member.name) as sink:

        def report(step: int, numbers: dict[str, float]) -> None:
            sink(step, numbers)
            if f"dev/{member.train.metric}" in numbers:
                value = numbers[f"dev/{member.train.metric}"]
                log.info("%s: after step %d dev %s is %.4f", member.name, step, member.train.metric, value)

        yield report


def plot_history(history: DataFrame) -> Figure:
    """Loss, rate and dev metrics over the epochs."""
    from xmodal_kedro.reporting.figures import training_curves

    return training_curves(history)
