"""What the processes of test_captions do; a module of its own, for each of them imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.training.small_captioner import CAPTIONING, config, examples, images, same, small_captioner, weights
from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.training.captions import train_captioner
from xmodal_kedro.training.state import TrainingState


class Scripted:
    """An evaluation that says what it is told, and remembers the weights it was shown."""

    def __init__(self, *metrics: float) -> None:
        self.metrics, self.shown = list(metrics), []

    def __call__(self, captioner: PackedCaptioner) -> dict[str, float]:
        assert not captioner.captioner.training
        self.shown.append(weights(captioner))
        return {"cider_d_characters": self.metrics[len(self.shown) - 1], "distinct_captions": 0.5}


class Stop(Exception):  # noqa: N818
    """What ends a training."""


class Ending:
    """Images that cannot be read any more after some batches, in every process alike."""

    def __init__(self, reads: int) -> None:
        self.pixels, self.reads = images(), reads

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.reads -= 1
        if self.reads < 0:
            raise Stop
        return self.pixels[rows]


def work(job: tuple[list[Any], Path]) -> tuple[list[Any], bool]:
    """Train all; and whether a training that was interrupted in its second epoch ended as one that was not."""
    trainings, folder = job
    settings = {"augment": {"flip": 0.5}, "epochs": 3, "seed": 5}

    def ended(reads: int, seed: int = 0) -> dict[str, torch.Tensor]:
        state = TrainingState(folder, f"{reads > 99}", "key")
        captioner = small_captioner(seed, dropout=0.2)
        train_captioner(captioner, Ending(reads), examples(), None, config(**settings), CAPTIONING, state=state)  # type: ignore[arg-type]
        return weights(captioner)

    try:
        ended(6)  # of 4 batches an epoch
    except Stop:
        equal = same(ended(99, seed=3), ended(1000))
    return train_all(trainings), equal


def train_all(trainings: list[tuple[dict[str, Any], list[int], list[float] | None]]) -> list[Any]:
    """Train one after the other, from settings, rows of the examples and metrics on dev after each epoch.

    Returns:
        Per training: weights, history, best epoch, losses that were reported, number of processes.
    """
    return [_train(*training) for training in trainings]


def _train(settings: dict[str, Any], rows: list[int], metrics: list[float] | None) -> Any:
    losses: list[float] = []

    def report(step: int, numbers: dict[str, float]) -> None:
        losses.extend([numbers["loss"]] if "loss" in numbers else [])

    # Different weights at first: those of rank 0 must count.
    captioner = small_captioner(seed=rank())
    evaluate = None if metrics is None else Scripted(*metrics)
    table = examples().iloc[rows].reset_index(drop=True)
    result = train_captioner(captioner, images(), table, evaluate, config(**settings), CAPTIONING, report=report)
    assert rank() == 0 or not (losses or (evaluate is not None and evaluate.shown))
    return weights(captioner), result.history, result.best_epoch, losses, processes()
