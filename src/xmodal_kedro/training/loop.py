"""Train a backbone on pairs: the same seed and threads give the same weights, and the best epoch's are kept.

That holds for a training that was interrupted, too: it goes on after the last epoch that it finished.

Where several processes train together (see `training.launch`), all of them call `train` with the same arguments; each
computes its share of every batch, and their number changes neither batches nor views of the images. Dropout is drawn
anew in each process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.config.member import AugmentConfig, TrainConfig
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.backbone import Backbone, Batch, Tokens, TrainState, seeded
from xmodal_kedro.training.batches import Pairs, deal, pinned, prefetched
from xmodal_kedro.training.gradient_cache import cached_backward, uses_batch_statistics
from xmodal_kedro.training.optimiser import learning_rate, make_optimiser
from xmodal_kedro.training.processes import averaged, own_share, said_by_first, spread_weights
from xmodal_kedro.training.state import TrainingState, seed_epoch
from xmodal_kedro.training.steps import Best, Report, progress, take_step

Evaluate = Callable[[Backbone], dict[str, float]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A trained backbone and how it came about; of several processes, only rank 0 has the whole answer."""

    backbone: Backbone  # in eval mode, with the weights of `best_epoch`
    history: pd.DataFrame  # a row per epoch; epoch 0 is before training
    best_epoch: int
    best_metric: float | None  # none without evaluation


def train(
    backbone: Backbone,
    pixels: np.ndarray,
    examples: pd.DataFrame,
    evaluate: Evaluate | None,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    name: str = "member",
    state: TrainingState | None = None,
) -> TrainResult:
    """Train with AdamW, evaluating before the first epoch and after each.

    Args:
        backbone: Trained in place; parameters that are frozen stay so.
        pixels: [N, S, S, 3] uint8 packed images, may be memory-mapped.
        examples: Columns `text`, `image_row` and `key`: see `Pairs`.
        evaluate: Metrics on dev by name; called in eval mode, by rank 0 alone. None needs `keep: last` and no
            `patience`.
        config: Every key of it counts here, but `loss.multi_positive`, which decides `key`.
        device: Where to train.
        report: Called with the step (from 1) and numbers: after each step what `training_step` returns, `lr`,
            `logit_scale` and `pairs_per_second`; after each evaluation `dev/<metric>`. Only rank 0 reports.
        name: Of the member, for the progress bar and errors.
        state: What an interrupted training goes on from; saved after each epoch.

    Returns:
        History columns: `epoch`, `step`, `loss` (mean of the epoch), `lr`, `pairs_per_second`, `dev/<metric>`.

    Raises:
        ValueError: Too few pairs, rows that do not exist, a metric that `evaluate` does not give, micro-batches of a
            backbone whose loss needs more than features, or a batch that is smaller than the number of processes.
        NonFiniteLossError: Naming step, epoch, rate and what to try.
    """
    if evaluate is None and (config.keep == "best" or config.patience):
        raise ValueError(
            "train.keep 'best' and train.patience need an evaluation on dev: set keep to last, no patience"
        )
    if rank() > 0:
        evaluate = report = None
    device = torch.device(device)
    pairs = Pairs(backbone, pixels, examples)
    trainer = _Trainer(backbone.to(device), pairs, config, device, name)
    best = Best(backbone, keeps=config.keep == "best")
    with seeded(config.seed), progress(config.epochs * len(examples), name, "pair") as bar:
        history, over = _resumed(trainer, best, state, bar)
        while not over:
            epoch = len(history)
            row: dict[str, float] = trainer.run_epoch(epoch, report, bar) if epoch else {"epoch": 0, "step": 0}
            if evaluate is not None:
                metrics = _evaluate(backbone, evaluate, config.metric)
                row |= {f"dev/{metric}": value for metric, value in metrics.items()}
                best.offer(epoch, metrics[config.metric])
                if report is not None:
                    report(trainer.step, {f"dev/{metric}": value for metric, value in metrics.items()})
            history.append(row)
            waited = config.patience is not None and epoch - best.epoch >= config.patience
            over = said_by_first(waited or epoch == config.epochs)
            if state is not None and epoch:
                _save(trainer, best, state, history, over)
    kept_epoch = best.restore() if evaluate is not None and config.keep == "best" else len(history) - 1
    metric = history[kept_epoch].get(f"dev/{config.metric}")
    return TrainResult(backbone.eval(), pd.DataFrame(history), kept_epoch, metric)


class _Trainer:
    """The state of one training: optimiser, step, views of the images."""

    def __init__(self, backbone: Backbone, pairs: Pairs, config: TrainConfig, device: torch.device, name: str) -> None:
        self.backbone, self.pairs, self.config, self.device, self.name = backbone, pairs, config, device, name
        _check(backbone, config, name)
        spread_weights(backbone)
        backbone.begin_training(config)
        self.optimiser = make_optimiser(backbone, config)
        self.transform = backbone.image_transform(train=True, augment=config.augment)
        self.views = torch.Generator().manual_seed(config.seed)
        # Random views are drawn for the rows of all processes, so that no view depends on who computes it.
        self.draws_for_all = processes() > 1 and config.augment != AugmentConfig()
        self.step = 0
        self.steps_per_epoch = len(self.deal(1))
        self.steps = config.epochs * self.steps_per_epoch

    def deal(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as rows; all processes deal the same."""
        alike = self.pairs.alike if self.config.sampler == "spread" else np.arange(len(self.pairs.alike))
        generator = np.random.default_rng([self.config.seed, epoch])
        return deal(alike, self.config.batch_size, generator, processes())

    def run_epoch(self, epoch: int, report: Report | None, bar: tqdm) -> dict[str, float]:
        """Train on every pair once."""
        seed_epoch(self.config.seed, epoch)
        self.backbone.train()
        losses, trained, began = [], 0, time.perf_counter()
        with closing(prefetched(map(self.read, self.deal(epoch)))) as batches:
            for pixels, tokens, keys in batches:
                start = time.perf_counter()
                rate = learning_rate(self.step, self.steps_per_epoch, self.config)
                numbers = self.run_step(pixels, tokens, keys, rate, epoch)
                losses.append(numbers["loss"])
                rows = len(keys) * processes()
                trained += rows
                bar.set_postfix(epoch=epoch, loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update(rows)
                if report is not None:
                    numbers |= {"lr": rate, "logit_scale": self.backbone.logit_scale.item()}
                    report(self.step, numbers | {"pairs_per_second": rows / (time.perf_counter() - start)})
        speed = trained / (time.perf_counter() - began)
        loss = float(np.mean(losses))
        return {"epoch": epoch, "step": self.step, "loss": loss, "lr": rate, "pairs_per_second": speed}

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tokens, Tensor]:
        """Read this process's share of a batch, in the thread."""
        own = rows[own_share(len(rows))]
        pixels = self.pairs.images(rows if self.draws_for_all else own)
        tokens, keys = self.pairs.captions(own)
        tokens = {name: pinned(values, self.device) for name, values in tokens.items()}
        return pinned(pixels, self.device), tokens, pinned(keys, self.device)

    def run_step(self, pixels: Tensor, tokens: Tokens, keys: Tensor, rate: float, epoch: int) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        images = self.transform(pixels.to(self.device, non_blocking=True), self.views)
        batch = Batch(
            images[own_share(len(images))] if self.draws_for_all else images,
            {name: values.to(self.device, non_blocking=True) for name, values in tokens.items()},
            keys.to(self.device, non_blocking=True),
        )
        self.optimiser.zero_grad(set_to_none=True)
        numbers = averaged(self.backward(batch))
        where = f"{self.name}: at step {self.step + 1} of {self.steps}, epoch {epoch}"
        take_step(self.optimiser, numbers["loss"], rate, self.config.grad_clip, where)
        self.backbone.after_step()
        self.step += 1
        return numbers

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch, whose gradients are left in the parameters."""
        state = TrainState(self.step, self.steps, self.steps_per_epoch, self.config.loss)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        if self.config.micro_batch is not None and self.config.micro_batch < len(batch.pixels):
            return cached_backward(self.backbone, batch, state, self.config.micro_batch, autocast)
        with autocast:
            losses = self.backbone.training_step(batch, state)
        losses["loss"].backward()
        return losses


def _resumed(
    trainer: _Trainer, best: Best, state: TrainingState | None, bar: tqdm
) -> tuple[list[dict[str, float]], bool]:
    """The history so far and whether it is complete: of an interrupted training, or none yet."""
    saved = None
    if state is not None:
        saved = state.load(trainer.backbone, trainer.optimiser, {"views": trainer.views})
    if saved is None:
        return [], False
    trainer.backbone.resume_training(_under(saved.tensors, "backbone."))
    history: list[dict[str, float]] = saved.facts["history"]
    trainer.step = int(history[-1]["step"])
    best.epoch, best.metric = saved.facts["best"]
    best.weights = _under(saved.tensors, "best.")
    epoch = len(history) - 1
    bar.update(epoch * len(trainer.pairs.alike))
    if rank() == 0:
        where = "had ended with" if saved.facts["over"] else "goes on after"
        log.info("%s: %s epoch %d of an interrupted run", trainer.name, where, epoch)
    return history, saved.facts["over"]


def _save(trainer: _Trainer, best: Best, state: TrainingState, history: list[dict[str, float]], over: bool) -> None:
    """Write what `_resumed` reads."""
    tensors = {f"best.{name}": tensor for name, tensor in best.weights.items()}
    tensors |= {f"backbone.{name}": tensor for name, tensor in trainer.backbone.training_tensors().items()}
    facts = {"history": history, "best": [best.epoch, best.metric], "over": over}
    state.save(trainer.backbone, trainer.optimiser, {"views": trainer.views}, facts, tensors)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check(backbone: Backbone, config: TrainConfig, name: str) -> None:
    """Refuse what cannot be computed, and warn of what is computed otherwise than one may expect."""
    if config.batch_size < processes():
        raise ValueError(
            f"{name}: train.batch_size {config.batch_size} is shared by {processes()} processes: raise it, or lower "
            "runtime.processes"
        )
    if reason := backbone.refusal(config):
        raise ValueError(f"{name}: {reason}")
    if (config.micro_batch is not None or processes() > 1) and uses_batch_statistics(backbone) and rank() == 0:
        parts = "micro-batch" if config.micro_batch is not None else "share of a process"
        log.warning("%s: BatchNorm normalises each %s on its own, not the whole batch", name, parts)


@torch.no_grad()
def _evaluate(backbone: Backbone, evaluate: Evaluate, metric: str) -> dict[str, float]:
    backbone.eval()
    metrics = evaluate(backbone)
    if metric not in metrics:
        raise ValueError(f"train.metric '{metric}' is none of the metrics on dev: {', '.join(sorted(metrics))}")
    return metrics
