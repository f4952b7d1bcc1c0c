"""Train a captioner on captions: the same seed and threads give the same weights, also where training was interrupted.

First by teacher forcing, then, where that is asked for, by rewards of sampled captions (see `caption_phases`). Where
the image encoder does not train, every image is encoded once before the first epoch, as it is, and its vector kept.

Several processes (see `training.launch`) share every batch; its loss is the mean over the tokens of all of them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.config.captioning import CaptioningConfig, CaptionTrainConfig
from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.losses.gather import gathered, processes, rank
from xmodal_kedro.models.backbone import seeded
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.training.batches import prefetched
from xmodal_kedro.training.caption_batches import Captions, Views
from xmodal_kedro.training.caption_phases import Phase, Rewarding, TeacherForcing
from xmodal_kedro.training.gradient_cache import uses_batch_statistics
from xmodal_kedro.training.optimiser import make_optimiser
from xmodal_kedro.training.processes import averaged, own_share, said_by_first, spread_weights
from xmodal_kedro.training.state import TrainingState, seed_epoch
from xmodal_kedro.training.steps import Best, Report, progress, take_step

Evaluate = Callable[[PackedCaptioner], dict[str, float]]

COLUMNS = ["epoch", "step", "phase", "loss", "lr", "captions_per_second"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionTrainResult:
    """A trained captioner and how it came about; of several processes, only rank 0 has the whole answer."""

    captioner: PackedCaptioner  # in eval mode, with the weights of `best_epoch`
    history: pd.DataFrame  # a row per epoch; epoch 0 is before training
    best_epoch: int
    best_metric: float | None  # none without evaluation


@dataclass
class _Course:
    """How far training is, after an epoch: plain data, which a state keeps."""

    phase: int = 0
    began: int = 0  # epoch after which the phase began
    first_step: int = 0  # of the phase
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    over: bool = False

    @property
    def epoch(self) -> int:
        """The next one."""
        return len(self.history)


def train_captioner(
    captioner: PackedCaptioner,
    pixels: np.ndarray,
    examples: pd.DataFrame,
    evaluate: Evaluate | None,
    config: CaptionTrainConfig,
    captioning: CaptioningConfig,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    name: str = "captioner",
    state: TrainingState | None = None,
) -> CaptionTrainResult:
    """Train with AdamW, evaluating before the first epoch and after each.

    Args:
        captioner: Trained in place.
        pixels: [N, S, S, 3] uint8 packed images, may be memory-mapped.
        examples: Columns `text` and `image_row` (row of `pixels`).
        evaluate: Metrics on dev by name, those of captions with their tokeniser; called in eval mode, by rank 0 alone.
            None needs `keep: last` and no `patience`.
        config: Every key of it counts here.
        captioning: Its `tokeniser` belongs to `config.metric`, and to rewards; captions that are drawn for these have
            at most the `max_steps` of its decoding.
        device: Where to train.
        report: Called with the step (from 1) and numbers: after each step `loss`, `lr` and `captions_per_second`, and
            what self-critical training adds; after each evaluation `dev/<metric>`. Only rank 0 reports.
        name: Of the captioner, for the progress bar and errors.
        state: Where training goes on if it was interrupted, and is kept after each epoch.

    Returns:
        History columns: `epoch`, `step`, `phase`, `loss` (mean of the epoch), `lr`, `captions_per_second`,
        `dev/<metric>`.

    Raises:
        ValueError: Nothing to train on, rows that do not exist, a metric that `evaluate` does not give, or settings
            that do not fit together.
        NonFiniteLossError: Naming step, epoch, rate and what to try.
    """
    if evaluate is None and (config.keep == "best" or config.patience):
        raise ValueError(
            f"{name}: train.keep 'best' and train.patience need references of dev images, of two at least: raise "
            "data.dev_share, or set keep to last, no patience"
        )
    if rank() > 0:
        evaluate = report = None
    metric = captioning.named(config.metric)
    with seeded(config.seed):
        on = torch.device(device)
        trainer = _Trainer(captioner.to(on), pixels, examples, config, captioning, on, name)
        total = sum(phase.epochs * phase.captions for phase in trainer.phases)
        with progress(total, name, "caption") as bar:
            course, best = _resumed(trainer, state, bar)
            while not course.over:
                row = trainer.run_epoch(course, report, bar)
                if evaluate is not None:
                    metrics = _evaluated(captioner, evaluate, metric)
                    row |= metrics
                    best.offer(course.epoch, metrics[f"dev/{metric}"])
                    if report is not None:
                        report(course.step, metrics)
                course.history.append(row)
                if rank() == 0 and course.epoch > 1:
                    log.info("%s", _told(name, row, trainer.phases[course.phase], course))
                _turn(course, trainer, best)
                if state is not None:
                    facts = {"course": asdict(course), "best": [best.epoch, best.metric]}
                    state.save(
                        trainer.model, trainer.optimiser, {"views": trainer.views.generator}, facts, best.weights
                    )
    kept = best.restore() if evaluate is not None and config.keep == "best" else course.epoch - 1
    history = pd.DataFrame(course.history)
    history = history[COLUMNS + [column for column in history if column not in COLUMNS]]
    return CaptionTrainResult(captioner.eval(), history, kept, course.history[kept].get(f"dev/{metric}"))


class _Trainer:
    """What steps are taken with: model, optimiser, views of the images, and the phases of training."""

    def __init__(
        self,
        captioner: PackedCaptioner,
        pixels: np.ndarray,
        examples: pd.DataFrame,
        config: CaptionTrainConfig,
        captioning: CaptioningConfig,
        device: torch.device,
        name: str,
    ) -> None:
        self.captioner, self.config, self.device, self.name = captioner, config, device, name
        self.model: Captioner = captioner.captioner
        self.model.image_encoder.requires_grad_(config.image_encoder)
        _check(self.model, config, name)
        positions, counts = self.model.gpt.sizes.block_size, not config.ignore_padding
        captions = Captions(self.model.vocabulary, examples, len(pixels), positions, counts_padding=counts)
        if captions.cut and rank() == 0:
            log.warning("%s: %d captions are longer than %d tokens, and are cut", name, captions.cut, positions)
        if captions.unknown and rank() == 0:
            log.warning(
                "%s: %.2f %% of the characters to learn are not in its member's vocabulary, and will be lacking",
                *(name, 100 * captions.unknown),
            )
        spread_weights(self.model)
        self.optimiser = make_optimiser(self.model, config)
        if config.image_encoder:
            transform = captioner.image_transform(train=True, augment=config.augment)
            self.views = Views(pixels, transform, config.seed, device)
        else:
            rows, captions.image_rows = np.unique(captions.image_rows, return_inverse=True)
            self.views = Views(self.encoded(pixels, rows), None, config.seed, device)
        self.phases: list[Phase] = [TeacherForcing(self.model, captions, self.views, config)]
        if (critical := config.self_critical) is not None:
            texts = examples["text"].tolist()
            self.phases.append(Rewarding(self.model, captions, texts, self.views, critical, captioning))

    def run_epoch(self, course: _Course, report: Report | None, bar: tqdm) -> dict[str, Any]:
        """An epoch of the present phase; before the first one there is nothing but its row to make."""
        phase = self.phases[course.phase]
        row: dict[str, Any] = {"epoch": course.epoch, "step": course.step, "phase": phase.name}
        if course.epoch == 0:
            return row | dict.fromkeys(COLUMNS[3:], math.nan)
        self.captioner.train()
        seed_epoch(self.config.seed, course.epoch)
        dealt = phase.deal(np.random.default_rng([self.config.seed, course.epoch]))
        captions, losses, began = phase.captions / sum(map(len, dealt)), [], time.perf_counter()
        with closing(prefetched(map(phase.read, dealt))) as batches:
            for rows, batch in zip(dealt, batches, strict=True):
                start, learned = time.perf_counter(), len(rows) * captions
                rate = phase.rate(course.step - course.first_step)
                numbers = self.run_step(phase, batch, rate, course)
                losses.append(numbers["loss"])
                bar.set_postfix(epoch=course.epoch, loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update(int(learned))
                if report is not None:
                    speed = learned / (time.perf_counter() - start)
                    report(course.step, numbers | {"lr": rate, "captions_per_second": speed})
        speed = phase.captions / (time.perf_counter() - began)
        return row | {"step": course.step, "loss": float(np.mean(losses)), "lr": rate, "captions_per_second": speed}

    def run_step(self, phase: Phase, batch: Any, rate: float, course: _Course) -> dict[str, float]:
        """One optimiser step; returns the numbers of the whole batch."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            losses = phase.losses(batch)
        losses["loss"].backward()
        numbers = averaged(losses)
        where = f"{self.name}: at step {course.step + 1}, epoch {course.epoch} ({phase.name})"
        take_step(self.optimiser, numbers["loss"], rate, self.config.grad_clip, where)
        course.step += 1
        return numbers

    def autocast(self) -> torch.autocast:
        """As `train.precision` says."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def encoded(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Vectors [I, W] of images [I], each encoded by one of the processes, as it is."""
        if rank() == 0:
            log.info("%s: the image encoder does not train; %d images are encoded once", self.name, len(rows))
            if self.config.augment != AugmentConfig():
                log.warning("%s: train.augment does nothing where train.image_encoder is false", self.name)
        shared = np.resize(rows, math.ceil(len(rows) / processes()) * processes())  # some twice, to share evenly
        mine = shared[own_share(len(shared))]
        size, transform = self.config.batch_size, self.captioner.image_transform(train=False)
        self.captioner.eval()
        vectors = []
        with progress(len(mine), f"{self.name}: images", "image") as bar:
            for start in range(0, len(mine), size):
                images = torch.from_numpy(np.ascontiguousarray(pixels[mine[start : start + size]]))
                with self.autocast():
                    vectors.append(self.model.encode(transform(images.to(self.device))).float())
                bar.update(len(images))
        everything: np.ndarray = gathered(torch.cat(vectors))[: len(rows)].cpu().numpy()
        return everything


def _resumed(trainer: _Trainer, state: TrainingState | None, bar: tqdm) -> tuple[_Course, Best]:
    """The beginning, or where an interrupted training was."""
    best = Best(trainer.model, keeps=trainer.config.keep == "best")
    saved = None if state is None else state.load(trainer.model, trainer.optimiser, {"views": trainer.views.generator})
    if saved is None:
        return _Course(), best
    course = _Course(**saved.facts["course"])
    best.epoch, best.metric = saved.facts["best"]
    best.weights = saved.tensors
    if rank() == 0:
        where = "had ended with" if course.over else "goes on after"
        log.info("%s: %s epoch %d of an interrupted run", trainer.name, where, course.epoch - 1)
    names = {phase.name: phase for phase in trainer.phases}
    bar.update(sum(names[row["phase"]].captions for row in course.history[1:]))
    return course, best


def _turn(course: _Course, trainer: _Trainer, best: Best) -> None:
    """After an epoch: see whether the phase is over, and begin the next one with the best weights so far."""
    config, done = trainer.config, course.epoch - 1
    waited = done - max(best.epoch, course.began)
    over = done - course.began >= trainer.phases[course.phase].epochs
    # Only rank 0 knows the metric.
    if not said_by_first(over or (config.patience is not None and waited >= config.patience)):
        return
    course.phase, course.began, course.first_step = course.phase + 1, done, course.step
    course.over = course.phase == len(trainer.phases)
    if not course.over:
        if rank() == 0 and config.keep == "best":
            best.restore()
        spread_weights(trainer.model)
        trainer.optimiser.state.clear()  # moments of another loss


def _told(name: str, row: dict[str, Any], phase: Phase, course: _Course) -> str:
    """An epoch in a line: where it is in its phase, what was learned, and what dev says."""
    numbers = [f"loss {row['loss']:.3f}", *(f"{key} {row[key]:.4f}" for key in row if key.startswith("dev/"))]
    return f"{name}: {phase.name}, epoch {row['epoch'] - course.began} of {phase.epochs}: {', '.join(numbers)}"


def _evaluated(captioner: PackedCaptioner, evaluate: Evaluate, metric: str) -> dict[str, float]:
    """Metrics on dev under their names in the history."""
    captioner.eval()
    with torch.no_grad():
        metrics = evaluate(captioner)
    if metric not in metrics:
        raise ValueError(f"train.metric '{metric}' is none of the metrics on dev: {', '.join(sorted(metrics))}")
    return {f"dev/{name}": value for name, value in metrics.items()}


def _check(model: Captioner, config: CaptionTrainConfig, name: str) -> None:
    """Refuse what cannot be computed, and warn of what is computed otherwise than one may expect."""
    if config.batch_size < processes():
        raise ValueError(
            f"{name}: train.batch_size {config.batch_size} is shared by {processes()} processes: raise it, or lower "
            "runtime.processes"
        )
    if processes() > 1 and config.image_encoder and uses_batch_statistics(model) and rank() == 0:
        log.warning("%s: BatchNorm normalises each share of a process on its own, not the whole batch", name)
