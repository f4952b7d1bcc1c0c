"""The training of one captioner, in one process or several: from a member's checkpoint to a captioner's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from pandas import DataFrame

from xmodal_kedro.captioning.checkpoint import begin_captioner, write_captioner
from xmodal_kedro.captioning.dev import DevCaptions
from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.data.manifest import fingerprint
from xmodal_kedro.data.tables import table_fingerprint
from xmodal_kedro.data.text_cleaning import cleaned
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.checkpoint import read_checkpoint
from xmodal_kedro.tracking.sink import metric_sink
from xmodal_kedro.training.captions import CaptionTrainResult, train_captioner
from xmodal_kedro.training.device import pick_device
from xmodal_kedro.training.examples import train_rows
from xmodal_kedro.training.state import TrainingState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionJob:
    """All that a process needs to train a captioner; plain data, for it may travel to several."""

    captioner: CaptionerConfig
    captioning: CaptioningConfig
    runtime: RuntimeConfig
    member: Path  # checkpoint that the captioner begins with
    captions: DataFrame
    images: Path  # of the image store
    checkpoint: Path  # empty directory for it
    states: Path  # folder of what interrupted trainings go on from


def train_and_write(job: CaptionJob) -> DataFrame:
    """Train in this process, together with others if there are some; rank 0 writes the checkpoint.

    Returns:
        A row per epoch.

    Raises:
        ValueError: There is nothing to train on, or nothing on dev to choose an epoch by.
    """
    config, images, device = job.captioner, ImageStore.open(job.images), pick_device(job.runtime)
    assert config.train is not None  # a captioner that begins with a member has it
    member = read_checkpoint(job.member, device)
    # As the member's were cleaned: its vocabulary has no characters but theirs.
    rows = train_rows(cleaned(job.captions, member.member.train.clean_text))
    examples = DataFrame({"text": rows["text"].to_numpy(), "image_row": images.rows(rows["image_id"].tolist())})
    captioner = begin_captioner(member.backbone, config, grad_checkpointing=member.member.backbone.grad_checkpointing)
    made_by = {
        "captions": table_fingerprint(job.captions),
        "images": images.fingerprint,
        "member": member.fingerprints["weights"],
    }
    dev = DevCaptions.of(job.captions, images, config.train.metric, job.captioning, device)
    state = TrainingState(job.states, config.name, _key(job, made_by, device)) if job.runtime.resume else None
    if rank() == 0:
        log.info("%s: %d captions of %d images on %s", config.name, len(rows), rows["image_id"].nunique(), device)
    with metric_sink(config.name) as report:
        result = train_captioner(
            captioner, images.pixels, examples, dev, config.train, job.captioning, device, report, config.name, state
        )
    if rank() == 0:
        log.info("%s: kept epoch %d of %d", config.name, result.best_epoch, int(result.history["epoch"].max()))
        if result.best_epoch == 0:
            log.warning("%s: no epoch was better on dev than the weights it began with", config.name)
        _warn_of_collapse(config.name, dev, result)
        kept = result.history.drop(columns="phase").set_index("epoch").loc[result.best_epoch].dropna().to_dict()
        metrics = {"epoch": result.best_epoch} | {str(metric): value for metric, value in kept.items()}
        write_captioner(job.checkpoint, member.backbone, config, metrics, made_by)
    return result.history


def _key(job: CaptionJob, made_by: dict[str, str], device: torch.device) -> str:
    """Fingerprint of all that decides the weights: another one means another training."""
    judged_by = {"tokeniser", "dev_images"}
    return fingerprint(
        {
            "captioner": job.captioner.model_dump(),
            "captioning": job.captioning.model_dump(include=judged_by),
            "max_steps": job.captioning.decoding.max_steps,
            "made_by": made_by,
            "machine": [device.type, torch.get_num_threads(), processes()],
        }
    )


def _warn_of_collapse(name: str, dev: DevCaptions | None, result: CaptionTrainResult) -> None:
    """Early on nearly all captions are the same, always; what is kept should be better."""
    distinct = result.history["dev/distinct_captions"].iloc[result.best_epoch] if dev is not None else 1.0
    if dev is not None and dev.collapsed(distinct):
        log.warning(
            "%s: nearly all captions of dev are the same (%.1f %% differ): the captioner hardly looks at its images. "
            "Train longer, lower train.lr, or begin with a member that ranks better",
            *(name, 100 * distinct),
        )
