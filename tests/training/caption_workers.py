"""What the processes of test_captions do; a module of its own, for each of them imports it."""

from __future__ import annotations

from typing import Any

from tests.training.small_captioner import CAPTIONING, config, examples, images, small_captioner, weights
from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.training.captions import train_captioner


class Scripted:
    """An evaluation that says what it is told, and remembers the weights it was shown."""

    def __init__(self, *metrics: float) -> None:
        self.metrics, self.shown = list(metrics), []

    def __call__(self, captioner: PackedCaptioner) -> dict[str, float]:
        assert not captioner.captioner.training
        self.shown.append(weights(captioner))
        return {"cider_d_characters": self.metrics[len(self.shown) - 1], "distinct_captions": 0.5}


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
