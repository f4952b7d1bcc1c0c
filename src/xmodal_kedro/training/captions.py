"""Train a captioner on captions: the same seed and threads give the same weights, also where training was interrupted.

First by teacher forcing: every caption is seen once an epoch, and every image of a batch is read, transformed and
encoded once, however many of its captions are there (BatchNorm sees it once, too). Where the image encoder does not
train, every image is encoded once before the first epoch, as it is, and its vector kept. Then, where that is asked for,
by rewards of sampled captions (`training.self_critical`).

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
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.captioning.metric_names import TOKENISERS
from xmodal_kedro.config.captioning import CaptionTrainConfig
from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.losses.gather import gathered, processes, rank
from xmodal_kedro.models.backbone import seeded
from xmodal_kedro.models.captioner import Captioner, caption_loss
from xmodal_kedro.training.batches import image_rows_of, prefetched
from xmodal_kedro.training.caption_batches import CaptionBatch, Captions, deal_captions
from xmodal_kedro.training.gradient_cache import uses_batch_statistics
from xmodal_kedro.training.optimiser import learning_rate, make_optimiser
from xmodal_kedro.training.processes import averaged, own_share, said_by_first, spread_weights
from xmodal_kedro.training.state import TrainingState, seed_epoch
from xmodal_kedro.training.steps import Best, Report, progress, take_step

Evaluate = Callable[[PackedCaptioner], dict[str, float]]

TEACHER_FORCING, SELF_CRITICAL = "teacher_forcing", "self_critical"
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

    phase: str = TEACHER_FORCING
    began: int = 0  # epoch after which the phase began
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
            f"{name}: train.keep 'best' and train.patience need references of dev images: set keep to last, no patience"
        )
    if rank() > 0:
        evaluate = report = None
    with seeded(config.seed):
        trainer = _Trainer(captioner.to(device), pixels, examples, config, torch.device(device), name)
        epochs = config.epochs + (config.self_critical.epochs if config.self_critical else 0)
        with progress(epochs * len(trainer.captions), name, "caption") as bar:
            course, best = _resumed(trainer, state, bar)
            while not course.over:
                row = trainer.run_epoch(course, report, bar)
                if evaluate is not None:
                    metrics, deciding = _evaluated(captioner, evaluate, config.metric)
                    row |= metrics
                    best.offer(course.epoch, deciding)
                    if report is not None:
                        report(course.step, metrics)
                course.history.append(row)
                _turn(course, trainer, best)
                if state is not None:
                    facts = {"course": asdict(course), "best": [best.epoch, best.metric]}
                    state.save(trainer.model, trainer.optimiser, {"views": trainer.views}, facts, best.weights)
    kept = best.restore() if evaluate is not None and config.keep == "best" else course.epoch - 1
    history = pd.DataFrame(course.history)
    history = history[COLUMNS + [column for column in history if column not in COLUMNS]]
    return CaptionTrainResult(captioner.eval(), history, kept, _metric_of(course.history[kept], config.metric))


def teacher_forcing_loss(
    captioner: Captioner, images: Tensor, which: Tensor, ids: Tensor, *, ignore_padding: bool = True
) -> Tensor:
    """Mean cross-entropy of the tokens of captions; equal to encoding a copy of its image for each.

    Args:
        captioner: Whose image encoder sees every image once.
        images: [I, 3, H, W], or vectors [I, W].
        which: [B] row of `images` for each caption.
        ids: [B, L].
        ignore_padding: See `caption_loss`.
    """
    logits = captioner(captioner.encode(images)[which], ids)
    return caption_loss(logits, ids, padding=captioner.vocabulary.pad, ignore_padding=ignore_padding)


class _Trainer:
    """What steps are taken with: model, optimiser, captions, views of the images."""

    def __init__(
        self,
        captioner: PackedCaptioner,
        pixels: np.ndarray,
        examples: pd.DataFrame,
        config: CaptionTrainConfig,
        device: torch.device,
        name: str,
    ) -> None:
        self.captioner, self.config, self.device, self.name = captioner, config, device, name
        self.model: Captioner = captioner.captioner
        self.model.image_encoder.requires_grad_(config.image_encoder)
        _check(self.model, config, name)
        spread_weights(self.model)
        self.optimiser = make_optimiser(self.model, config)
        images: np.ndarray = pixels
        if not config.image_encoder:
            images, examples = self.encoded(pixels, examples)
        positions = self.model.gpt.sizes.block_size
        counts = not config.ignore_padding
        self.captions = Captions(self.model.vocabulary, images, examples, positions, counts_padding=counts)
        if self.captions.cut and rank() == 0:
            log.warning(
                "%s: %d captions of train are longer than %d tokens, and are cut", name, self.captions.cut, positions
            )
        self.transform = captioner.image_transform(train=True, augment=config.augment)
        self.views = torch.Generator().manual_seed(config.seed)
        # Random views are drawn for the images of all processes, so that no view depends on who computes it.
        self.draws_for_all = processes() > 1 and config.image_encoder and config.augment != AugmentConfig()
        self.steps_per_epoch = len(self.deal(1))

    def deal(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as rows; all processes deal the same."""
        generator = np.random.default_rng([self.config.seed, epoch])
        rows = self.captions.image_rows
        return deal_captions(rows, self.config.batch_size, self.config.captions_per_image, generator)

    def run_epoch(self, course: _Course, report: Report | None, bar: tqdm) -> dict[str, Any]:
        """Train on every caption once; before the first epoch there is nothing but its row to make."""
        row: dict[str, Any] = {"epoch": course.epoch, "step": course.step, "phase": course.phase}
        if course.epoch == 0:
            return row | dict.fromkeys(COLUMNS[3:], math.nan)
        self.captioner.train()
        seed_epoch(self.config.seed, course.epoch)
        losses, trained, began = [], 0, time.perf_counter()
        with closing(prefetched(map(self.read, self.deal(course.epoch)))) as batches:
            for batch in batches:
                start = time.perf_counter()
                rate = learning_rate(course.step, self.steps_per_epoch, self.config)
                loss = self.run_step(batch, rate, course)
                losses.append(loss)
                trained += batch.captions
                bar.set_postfix(epoch=course.epoch, loss=f"{loss:.3f}", refresh=False)
                bar.update(batch.captions)
                if report is not None:
                    speed = batch.captions / (time.perf_counter() - start)
                    report(course.step, {"loss": loss, "lr": rate, "captions_per_second": speed})
        speed = trained / (time.perf_counter() - began)
        return row | {"step": course.step, "loss": float(np.mean(losses)), "lr": rate, "captions_per_second": speed}

    def read(self, rows: np.ndarray) -> CaptionBatch:
        """Read this process's share of a batch, in the thread."""
        return self.captions.read(rows, self.device, all_images=self.draws_for_all)

    def run_step(self, batch: CaptionBatch, rate: float, course: _Course) -> float:
        """One optimiser step; returns the loss of the whole batch."""
        images = self.seen(batch)
        which, ids = (part.to(self.device, non_blocking=True) for part in (batch.which, batch.ids))
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            ignores = self.config.ignore_padding
            loss = teacher_forcing_loss(self.model, images, which, ids, ignore_padding=ignores) * batch.weight
        loss.backward()
        mean = averaged({"loss": loss})["loss"]
        where = f"{self.name}: at step {course.step + 1}, epoch {course.epoch} ({course.phase})"
        take_step(self.optimiser, mean, rate, self.config.grad_clip, where)
        course.step += 1
        return mean

    def seen(self, batch: CaptionBatch) -> Tensor:
        """What the captioner is shown: views of the images, or their vectors as they are."""
        images = batch.images.to(self.device, non_blocking=True)
        if self.config.image_encoder:
            images = self.transform(images, self.views)
        return images if batch.own is None else images[batch.own.to(self.device)]

    def autocast(self) -> torch.autocast:
        """As `train.precision` says."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def encoded(self, pixels: np.ndarray, examples: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
        """Vectors [I, W] of all images, each encoded by one of the processes, and examples with rows of these."""
        rows, places = np.unique(image_rows_of(examples, len(pixels)), return_inverse=True)
        if rank() == 0:
            log.info(
                "%s: the image encoder does not train; %d images are encoded once, as they are", self.name, len(rows)
            )
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
        everything = gathered(torch.cat(vectors))[: len(rows)]
        return everything.cpu().numpy(), examples.assign(image_row=places)


def _resumed(trainer: _Trainer, state: TrainingState | None, bar: tqdm) -> tuple[_Course, Best]:
    """The beginning, or where an interrupted training was."""
    best = Best(trainer.model, keeps=trainer.config.keep == "best")
    saved = None if state is None else state.load(trainer.model, trainer.optimiser, {"views": trainer.views})
    if saved is None:
        return _Course(), best
    course = _Course(**saved.facts["course"])
    best.epoch, best.metric = saved.facts["best"]
    best.weights = saved.tensors
    if rank() == 0:
        log.info("%s: goes on after epoch %d", trainer.name, course.epoch - 1)
    bar.update((course.epoch - 1) * len(trainer.captions))
    return course, best


def _turn(course: _Course, trainer: _Trainer, best: Best) -> None:
    """After an epoch: see whether the phase is over, and begin the next one with the best weights so far."""
    config, done = trainer.config, course.epoch - 1
    critical = config.self_critical if course.phase == SELF_CRITICAL else None
    epochs = config.epochs if critical is None else critical.epochs
    waited = done - max(best.epoch, course.began)
    # Only rank 0 knows the metric.
    if not said_by_first(done - course.began >= epochs or (config.patience is not None and waited >= config.patience)):
        return
    if course.phase == SELF_CRITICAL or config.self_critical is None:
        course.over = True
        return
    course.phase, course.began = SELF_CRITICAL, done
    if rank() == 0 and config.keep == "best":
        best.restore()
    spread_weights(trainer.model)
    trainer.optimiser.state.clear()  # moments of another loss


def _evaluated(captioner: PackedCaptioner, evaluate: Evaluate, metric: str) -> tuple[dict[str, float], float]:
    """Metrics on dev under their names in the history, and the one that decides."""
    captioner.eval()
    with torch.no_grad():
        metrics = {f"dev/{name}": value for name, value in evaluate(captioner).items()}
    deciding = _metric_of(metrics, metric)
    if deciding is None:
        names = ", ".join(sorted(name.removeprefix("dev/") for name in metrics))
        raise ValueError(f"train.metric '{metric}', with a tokeniser, is none of the metrics on dev: {names}")
    return metrics, deciding


def _metric_of(row: dict[str, Any], metric: str) -> float | None:
    """The value of a metric in a row of the history, whatever its tokeniser."""
    names = (f"dev/{metric}_{tokeniser}" for tokeniser in TOKENISERS)
    return next((row[name] for name in names if name in row), None)


def _check(model: Captioner, config: CaptionTrainConfig, name: str) -> None:
    """Refuse what cannot be computed, and warn of what is computed otherwise than one may expect."""
    if config.batch_size < processes():
        raise ValueError(
            f"{name}: train.batch_size {config.batch_size} is shared by {processes()} processes: raise it, or lower "
            "runtime.processes"
        )
    if processes() > 1 and config.image_encoder and uses_batch_statistics(model) and rank() == 0:
        log.warning("%s: BatchNorm normalises each share of a process on its own, not the whole batch", name)
