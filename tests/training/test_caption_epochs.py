"""Epochs of a captioner: which one is kept, how rewards follow, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.training.caption_workers import Scripted, Stop
from tests.training.small_captioner import VIEWS, right_colours, same, small_captioner, train, weights
from xmodal_kedro.training.captions import CaptionTrainResult
from xmodal_kedro.training.optimiser import make_optimiser
from xmodal_kedro.training.state import TrainingState

# --- what it keeps


@pytest.mark.parametrize(
    ("metrics", "best"),
    [((0.1, 0.4, 0.3), 1), ((0.5, 0.4, 0.3), 0), ((0.1, 0.2, 0.2), 1), ((float("nan"), 0.2, 0.1), 1)],
)
def test_the_best_epoch_is_kept_and_the_first_of_equals(metrics: tuple[float, ...], best: int) -> None:
    evaluate = Scripted(*metrics)
    result = train(small_captioner(), evaluate, keep="best")
    assert (result.best_epoch, result.best_metric) == (best, metrics[best])
    assert same(weights(result.captioner), evaluate.shown[best])
    assert not result.captioner.captioner.training


def test_the_last_epoch_is_kept_when_asked_and_patience_ends_training() -> None:
    evaluate = Scripted(0.9, 0.4, 0.3)
    result = train(small_captioner(), evaluate, keep="last")
    assert (result.best_epoch, result.best_metric) == (2, 0.3)
    assert same(weights(result.captioner), evaluate.shown[2])
    ended = train(small_captioner(), Scripted(0.1, 0.4, 0.3, 0.3, 0.9), keep="best", patience=2, epochs=9)
    assert ended.history["epoch"].tolist() == [0, 1, 2, 3]
    assert ended.best_epoch == 1


def test_history_and_reports_begin_before_training() -> None:
    reports: list[tuple[int, dict[str, float]]] = []
    result = train(
        small_captioner(), Scripted(0.1, 0.2, 0.3), lambda *one: reports.append(one), warmup_steps=2, lr=1e-3
    )
    history = result.history
    begin = ["epoch", "step", "phase", "loss", "lr", "captions_per_second"]
    assert list(history) == [*begin, "dev/cider_d_characters", "dev/distinct_captions"]
    assert history["step"].tolist() == [0, 4, 8]  # 22 captions in batches of at most 7
    assert history["phase"].tolist() == ["teacher_forcing"] * 3
    assert np.isnan(history["loss"][0])
    assert (history["captions_per_second"][1:] > 0).all()
    assert reports[0] == (0, {"dev/cider_d_characters": 0.1, "dev/distinct_captions": 0.5})
    steps = [(step, numbers) for step, numbers in reports if "loss" in numbers]
    assert [step for step, _ in steps] == list(range(1, 9))
    assert [numbers["lr"] for _, numbers in steps][:3] == [0.0005, 0.001, 0.001]
    assert history["loss"][1] == pytest.approx(np.mean([numbers["loss"] for _, numbers in steps[:4]]))
    assert {"loss", "lr", "captions_per_second"} == steps[0][1].keys()


# --- interruptions


@pytest.mark.parametrize("stop", [4, 5, 8, 9, 11, 12])
def test_an_interrupted_training_ends_with_the_weights_of_one_that_was_not(stop: int, tmp_path: Path) -> None:
    critical = {"epochs": 2, "batch_size": 2, "samples": 2, "lr": 1e-3}  # 4 steps per epoch, too
    settings = {"epochs": 2, "keep": "best", "schedule": "cosine", "seed": 5, "self_critical": critical, **VIEWS}
    metrics = (0.1, 0.3, 0.2, 0.4, 0.2)
    whole = train(small_captioner(dropout=0.2), Scripted(*metrics), **settings)

    def interrupted(step: int, _: dict[str, float]) -> None:
        if step == stop:
            raise Stop

    state = TrainingState(tmp_path, "small", "key")
    with pytest.raises(Stop):
        train(small_captioner(dropout=0.2), Scripted(*metrics), interrupted, state, **settings)
    done = (stop - 1) // 4  # epochs that were finished, of 4 steps each
    evaluate, steps = Scripted(*metrics[done + 1 :]), []
    state = TrainingState(tmp_path, "small", "key")
    going_on = train(
        small_captioner(seed=9, dropout=0.2), evaluate, lambda step, _: steps.append(step), state, **settings
    )
    assert same(weights(going_on.captioner), weights(whole.captioner))
    assert steps[0] == 4 * done + 1
    assert len(evaluate.shown) == 4 - done
    assert (going_on.best_epoch, going_on.best_metric) == (whole.best_epoch, whole.best_metric) == (3, 0.4)
    speed = "captions_per_second"
    pd.testing.assert_frame_equal(going_on.history.drop(columns=speed), whole.history.drop(columns=speed))


def test_a_training_that_ended_is_not_trained_again(tmp_path: Path) -> None:
    """What failed after it, such as writing the checkpoint, can be done again."""
    first = train(small_captioner(), Scripted(0.1, 0.4, 0.3), state=TrainingState(tmp_path, "a", "key"), keep="best")
    again = train(small_captioner(), Scripted(), state=TrainingState(tmp_path, "a", "key"), keep="best")
    assert same(weights(again.captioner), weights(first.captioner))
    pd.testing.assert_frame_equal(again.history, first.history)


def test_another_key_begins_anew(tmp_path: Path) -> None:
    train(small_captioner(), Scripted(0.1, 0.4, 0.3), state=TrainingState(tmp_path, "a", "key"))
    evaluate = Scripted(0.1, 0.4, 0.3)
    train(small_captioner(), evaluate, state=TrainingState(tmp_path, "a", "other"))
    assert len(evaluate.shown) == 3


# --- rewards

CRITICAL = {"epochs": 2, "batch_size": 3, "samples": 4, "lr": 1e-3}


def test_self_critical_epochs_follow_from_the_best_weights() -> None:
    evaluate, reports = Scripted(0.1, 0.4, 0.3, 0.2, 0.5), []
    result = train(
        small_captioner(),
        evaluate,
        lambda *one: reports.append(one),
        keep="best",
        self_critical=CRITICAL,
        warmup_steps=3,
    )
    history = result.history
    assert history["phase"].tolist() == ["teacher_forcing"] * 3 + ["self_critical"] * 2
    assert history["step"].tolist() == [0, 4, 8, 11, 14]  # 8 images in batches of at most 3
    assert history["lr"].tolist()[3:] == [1e-3, 1e-3]
    assert (result.best_epoch, result.best_metric) == (4, 0.5)
    assert not same(evaluate.shown[3], evaluate.shown[2])
    assert [step for step, numbers in reports if "reward" in numbers] == list(range(9, 15))
    # Epoch 3 began with the weights of epoch 1.
    moved = [_distance(evaluate.shown[3], evaluate.shown[epoch]) for epoch in (1, 2)]
    assert moved[0] < moved[1]


def test_moments_of_teacher_forcing_do_not_steer_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    made, counts = [], {}

    def remembered(*parts: Any) -> torch.optim.AdamW:
        made.append(make_optimiser(*parts))
        return made[0]

    def report(step: int, _: dict[str, float]) -> None:
        counts[step] = int(next(iter(made[0].state.values()))["step"])

    monkeypatch.setattr("xmodal_kedro.training.captions.make_optimiser", remembered)
    train(small_captioner(), report=report, epochs=1, self_critical={**CRITICAL, "epochs": 1})
    assert counts == {1: 1, 2: 2, 3: 3, 4: 4, 5: 1, 6: 2, 7: 3}


def _distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return sum(float((value - second[name]).abs().sum()) for name, value in first.items())


def test_patience_ends_a_phase_and_the_next_one_has_its_own() -> None:
    evaluate = Scripted(0.5, 0.4, 0.3, 0.2, 0.1)
    result = train(
        small_captioner(), evaluate, keep="best", self_critical={**CRITICAL, "epochs": 5}, patience=2, epochs=9
    )
    assert result.history["phase"].tolist() == ["teacher_forcing"] * 3 + ["self_critical"] * 2
    assert same(weights(result.captioner), evaluate.shown[0])


def test_rewards_make_captions_better() -> None:
    def reward(result: CaptionTrainResult) -> float:
        return right_colours(result.captioner)["cider_d_characters"]

    settings = {"epochs": 8, "lr": 1e-2, "seed": 1}
    begun = train(small_captioner(), **settings)
    critical = {"epochs": 30, "batch_size": 8, "samples": 8, "lr": 3e-3}
    reports: list[dict[str, float]] = []
    ended = train(
        small_captioner(), report=lambda _, numbers: reports.append(numbers), self_critical=critical, **settings
    )
    rewards = [numbers["reward"] for numbers in reports if "reward" in numbers]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5
    assert reward(ended) >= reward(begun)
