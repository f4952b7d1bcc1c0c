"""The training of one captioner, in one process or several: from a member's checkpoint to a captioner's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pandas import DataFrame

from xmodal_kedro.captioning.checkpoint import PackedCaptioner, begin_captioner, write_captioner
from xmodal_kedro.captioning.decode import decode_batches
from xmodal_kedro.captioning.diversity import distinct_captions, repetition
from xmodal_kedro.captioning.metrics import TOKENISERS, evaluate
from xmodal_kedro.captioning.references import references_of
from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.data.manifest import fingerprint
from xmodal_kedro.data.tables import table_fingerprint
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.checkpoint import read_checkpoint
from xmodal_kedro.tracking.sink import metric_sink
from xmodal_kedro.training.captions import train_captioner
from xmodal_kedro.training.device import pick_device
from xmodal_kedro.training.examples import train_rows
from xmodal_kedro.training.state import TrainingState
from xmodal_kedro.training.steps import Report

COLLAPSED = 0.02  # distinct captions per image of dev below which a captioner does not look at its images

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
    rows = train_rows(job.captions)
    examples = DataFrame({"text": rows["text"].to_numpy(), "image_row": images.rows(rows["image_id"].tolist())})
    member = read_checkpoint(job.member, device)
    captioner = begin_captioner(member.backbone, config)
    made_by = {
        "captions": table_fingerprint(job.captions),
        "images": images.fingerprint,
        "member": member.fingerprints["weights"],
    }
    dev = DevCaptions.of(job, images, device)
    state = TrainingState(job.states, config.name, _key(job, made_by, device)) if job.runtime.resume else None
    if rank() == 0:
        log.info("%s: %d captions of %d images on %s", config.name, len(rows), rows["image_id"].nunique(), device)
    with _reports(job, dev) as report:
        result = train_captioner(
            captioner, images.pixels, examples, dev, config.train, job.captioning, device, report, config.name, state
        )
    if rank() == 0:
        log.info("%s: kept epoch %d of %d", config.name, result.best_epoch, int(result.history["epoch"].max()))
        if result.best_epoch == 0:
            log.warning("%s: no epoch was better on dev than the weights it began with", config.name)
        kept = result.history.drop(columns="phase").set_index("epoch").loc[result.best_epoch].dropna().to_dict()
        metrics = {"epoch": result.best_epoch} | {str(metric): value for metric, value in kept.items()}
        write_captioner(job.checkpoint, member.backbone, config, metrics, made_by)
    if state is not None:
        state.remove()
    return result.history


@dataclass(frozen=True)
class DevCaptions:
    """Judges a captioner by greedy captions of images of dev, against all that people wrote about them."""

    references: dict[str, list[str]]  # of the images, in the order of `rows`
    images: ImageStore
    rows: np.ndarray  # [N] of the images in the store
    captioning: CaptioningConfig
    metrics: tuple[str, ...]  # with their tokeniser
    device: torch.device

    @classmethod
    def of(cls, job: CaptionJob, images: ImageStore, device: torch.device) -> DevCaptions | None:
        """Take images evenly from those of dev that have references; none if there are no such images."""
        found = references_of(job.captions, "dev")
        known = [image_id for image_id in found if image_id in images.ids]
        if not known:
            return None
        places = np.linspace(0, len(known) - 1, min(len(known), job.captioning.dev_images)).round().astype(int)
        taken = [known[place] for place in places]
        assert job.captioner.train is not None
        named = (job.captioning.named(metric) for metric in ("cider_d", job.captioner.train.metric))
        references = {image_id: found[image_id] for image_id in taken}
        return cls(references, images, images.rows(taken), job.captioning, tuple(dict.fromkeys(named)), device)

    def __call__(self, captioner: PackedCaptioner) -> dict[str, float]:
        """Metrics by name, and how much captions differ and repeat themselves."""
        decoding = DecodingConfig(method="greedy", max_steps=self.captioning.decoding.max_steps)
        size = self.captioning.batch_size
        batches = (
            torch.from_numpy(self.images.pixels[self.rows[start : start + size]]).to(self.device)
            for start in range(0, len(self.rows), size)
        )
        texts = [caption.text for caption in decode_batches(captioner, batches, decoding)]
        captions = dict(zip(self.references, texts, strict=True))
        scores = evaluate(captions, self.references, self.metrics)
        cut = TOKENISERS[self.captioning.tokeniser]
        return {
            **{name: score.value for name, score in scores.items()},
            "distinct_captions": distinct_captions(texts),
            "repetition": repetition([cut(text) for text in texts]),
        }


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


@contextmanager
def _reports(job: CaptionJob, dev: DevCaptions | None) -> Iterator[Report]:
    """Where the numbers of training go: live curves, and what dev says also to the log."""
    name, decides = job.captioner.name, dev.metrics[-1] if dev is not None else ""
    fewest = max(COLLAPSED, 1 / len(dev.references)) if dev is not None else 0.0
    with metric_sink(name) as sink:

        def report(step: int, numbers: dict[str, float]) -> None:
            sink(step, numbers)
            if f"dev/{decides}" not in numbers:
                return
            log.info("%s: after step %d dev %s is %.4f", name, step, decides, numbers[f"dev/{decides}"])
            distinct = numbers["dev/distinct_captions"]
            if step and distinct <= fewest:
                log.warning(
                    "%s: after step %d nearly all captions of dev are the same (%.1f %% differ): the captioner hardly "
                    "looks at its images. If that stays so, lower train.lr or begin with a member that ranks better",
                    *(name, step, 100 * distinct),
                )

        yield report
