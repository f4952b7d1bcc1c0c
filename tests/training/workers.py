"""What the processes of test_launch do; a module of its own, for each of them imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.models.small import small_backbone
from tests.training.test_loop import Scripted, config, examples, images, weights
from xmodal_kedro.losses.gather import gathered, processes, rank
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.training.loop import train


@dataclass(frozen=True)
class Training:
    """A small training."""

    name: str
    settings: dict[str, Any]
    metrics: list[float] | None = None  # on dev, after each epoch


def train_all(trainings: list[Training]) -> list[Any]:
    """Train one after the other: per training weights, history, best epoch and the numbers that were reported."""
    return [_train(training) for training in trainings]


def _train(training: Training) -> Any:
    seen: list[tuple[int, float]] = []

    def report(step: int, numbers: dict[str, float]) -> None:
        if "loss" in numbers:
            seen.append((step, numbers["loss"]))

    # Different weights at first: those of rank 0 must count.
    backbone = small_backbone(training.name, seed=rank())
    evaluate = None
    if training.metrics is not None:
        evaluate = Scripted(*training.metrics) if rank() == 0 else _never
    result = train(backbone, images(), examples(), evaluate, config(**training.settings), report=report)
    mine = weights(result.backbone)
    logit_scales = gathered(backbone.logit_scale.detach()[None])
    assert (logit_scales == logit_scales[0]).all() or training.metrics  # all took the same steps
    assert rank() == 0 or not seen
    return mine, result.history, result.best_epoch, seen, processes()


def _never(backbone: Backbone) -> dict[str, float]:
    raise AssertionError("only rank 0 evaluates")
