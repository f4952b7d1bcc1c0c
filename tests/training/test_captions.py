"""Training a captioner: equal to a plain loop, the same each time, also after an interruption, and in two processes."""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.reference import caption_training as reference
from tests.training import caption_workers
from tests.training.caption_workers import Scripted, Stop
from tests.training.small_captioner import (
    CAPTIONING,
    COLOURS,
    MEAN,
    STD,
    config,
    examples,
    images,
    same,
    small_captioner,
    weights,
)
from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.training.caption_batches import deal_captions
from xmodal_kedro.training.caption_phases import teacher_forcing_loss
from xmodal_kedro.training.captions import CaptionTrainResult, train_captioner
from xmodal_kedro.training.launch import launch
from xmodal_kedro.training.optimiser import make_optimiser
from xmodal_kedro.training.state import TrainingState
from xmodal_kedro.training.steps import NonFiniteLossError

VIEWS = {"augment": {"scale": [0.4, 1.0], "flip": 0.5}}


def train(
    captioner: PackedCaptioner, evaluate: Any = None, report: Any = None, state: Any = None, **settings: Any
) -> CaptionTrainResult:
    chosen = config(**settings)
    return train_captioner(captioner, images(), examples(), evaluate, chosen, CAPTIONING, report=report, state=state)


def right_colours(captioner: PackedCaptioner) -> dict[str, float]:
    """Share of images whose greedy caption begins with their colour."""
    found = decode(captioner, torch.from_numpy(images()), DecodingConfig(max_steps=9))
    right = [caption.text[:1] == list(COLOURS)[row % 4] for row, caption in enumerate(found)]
    return {"cider_d_characters": float(np.mean(right)), "distinct_captions": 0.5, "repetition": 0.0}


# --- what it computes


@pytest.mark.parametrize("ignore_padding", [True, False])
@pytest.mark.parametrize("rows", [range(22), range(3), [4]])
def test_loss_and_gradients_are_those_of_a_copy_of_the_image_for_each_caption(
    rows: range | list[int], ignore_padding: bool
) -> None:
    captioner = small_captioner().captioner.double()
    table = examples().iloc[list(rows)]
    seen, which = np.unique(table["image_row"], return_inverse=True)
    pixels = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = [reference.caption_ids(captioner.vocabulary.tokens, text, 10) for text in table["text"]]
    padded = torch.tensor([one + [0] * (10 - len(one)) for one in ids])
    ours = teacher_forcing_loss(captioner, pixels[seen], torch.from_numpy(which), padded, ignore_padding=ignore_padding)
    found = torch.autograd.grad(ours, list(captioner.parameters()))
    copies = [pixels[row] for row in table["image_row"]]
    slow = reference.batch_loss(captioner, copies, ids, None if ignore_padding else 10)
    wanted = torch.autograd.grad(slow, list(captioner.parameters()))
    torch.testing.assert_close(ours.double(), slow, atol=1e-6, rtol=1e-6)  # our softmax runs in fp32
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"captions_per_image": 1},
        {"captions_per_image": 3, "grad_clip": 0.3},
        {"captions_per_image": 5, "ignore_padding": False},
        {"captions_per_image": 2, "image_encoder": False},
        {"batch_size": 1},
    ],
)
def test_an_epoch_is_that_of_a_plain_loop(settings: dict[str, Any]) -> None:
    chosen, table = config(epochs=1, seed=4, **settings), examples()
    generator = np.random.default_rng([4, 1])
    dealt = deal_captions(table["image_row"].to_numpy(), chosen.batch_size, chosen.captions_per_image, generator)
    batches = [[(table["image_row"][row], table["text"][row]) for row in batch] for batch in dealt]
    plain = small_captioner().captioner
    plain.image_encoder.requires_grad_(chosen.image_encoder)
    losses = reference.train(plain, images(), batches, chosen, MEAN, STD)
    captioner, reported = small_captioner(), {}
    result = train_captioner(captioner, images(), table, None, chosen, CAPTIONING, report=reported.__setitem__)
    assert [reported[step]["loss"] for step in sorted(reported)] == pytest.approx(losses, abs=1e-5)
    assert list(reported) == list(range(1, len(batches) + 1))
    assert result.history["loss"][1] == pytest.approx(np.mean(losses), abs=1e-5)
    # AdamW makes whole steps of gradients that are nothing but rounding, so a bias may differ by what a step is worth.
    for (name, ours), theirs in zip(captioner.captioner.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_every_image_of_a_batch_is_encoded_once() -> None:
    captioner, seen = small_captioner(), []
    captioner.captioner.image_encoder.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    train(captioner, captions_per_image=5, batch_size=30, epochs=3)
    assert seen == [8, 8, 8]
    seen.clear()
    train(captioner, captions_per_image=5, batch_size=8, epochs=1)
    assert sum(seen) == 8  # hands are not torn


def test_an_encoder_that_does_not_train_sees_every_image_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    captioner, seen = small_captioner(), []
    before = weights(captioner)
    captioner.captioner.image_encoder.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    train(captioner, image_encoder=False, epochs=3, **VIEWS)
    assert sum(seen) == 8
    after = weights(captioner)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("image_encoder") for name in changed)
    assert "8 images are encoded once" in caplog.text
    assert "augment does nothing" in caplog.text


def test_it_learns_what_it_sees() -> None:
    result = train(small_captioner(), right_colours, epochs=40, lr=1e-2, keep="best", captions_per_image=5)
    assert result.history["loss"].iloc[-1] < result.history["loss"][1] / 2
    assert result.best_metric == 1.0
    assert right_colours(result.captioner)["cider_d_characters"] == 1.0


def test_the_same_seed_gives_the_same_weights_whatever_happened_before() -> None:
    results = []
    for seed, disturbance in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        captioner = small_captioner(dropout=0.3)
        train(captioner, seed=seed, **VIEWS)
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights(captioner))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_bf16_trains_too() -> None:
    rough, exact = (train(small_captioner(), precision=precision) for precision in ("bf16", "fp32"))
    assert rough.history["loss"].iloc[-1] == pytest.approx(exact.history["loss"].iloc[-1], abs=0.05)
    assert rough.history["loss"].iloc[-1] != exact.history["loss"].iloc[-1]
    assert next(rough.captioner.captioner.parameters()).dtype == torch.float32


# --- several processes

TWO = RuntimeConfig(device="cpu", processes=2, threads=1)
ALL = list(range(22))
TRAININGS: dict[str, tuple[dict[str, Any], list[int], list[float] | None]] = {
    "uneven": ({"batch_size": 7, "captions_per_image": 3}, ALL, None),
    "views": ({"batch_size": 9, "captions_per_image": 5, **VIEWS}, ALL, None),
    "frozen": ({"image_encoder": False}, ALL[:9], None),
    "padding": ({"ignore_padding": False}, ALL, None),
    "one caption": ({}, [4], None),
    "rewards": ({"epochs": 1, "self_critical": {"batch_size": 3, "samples": 2}, **VIEWS}, ALL, None),
    "frozen rewards": ({"epochs": 1, "self_critical": {"baseline": "greedy"}, "image_encoder": False}, ALL, None),
    "best": ({"epochs": 6, "keep": "best", "patience": 2}, ALL, [0.1, 0.5, 0.3, 0.2]),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All trainings by two processes, and whether one that was interrupted ended as it would have."""
    folder = tmp_path_factory.mktemp("states")
    results, equal = launch(caption_workers.work, (list(TRAININGS.values()), folder), TWO)
    return {**dict(zip(TRAININGS, results, strict=True)), "resumed": equal}


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_give_the_weights_of_one(name: str, together: dict[str, Any]) -> None:
    ours, history, best, losses, count = together[name]
    ((alone, wanted, wanted_best, wanted_losses, one),) = caption_workers.train_all([TRAININGS[name]])
    assert (count, one) == (2, 1)
    assert losses == pytest.approx(wanted_losses, abs=2e-5)
    assert best == wanted_best
    speed = "captions_per_second"
    pd.testing.assert_frame_equal(history.drop(columns=speed), wanted.drop(columns=speed), atol=2e-5)
    for parameter, value in alone.items():
        torch.testing.assert_close(ours[parameter], value, atol=5e-4, rtol=0, msg=lambda m, p=parameter: f"{p}: {m}")
    assert not same(ours, weights(small_captioner()))


def test_two_processes_go_on_where_they_were(together: dict[str, Any]) -> None:
    assert together["resumed"]


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


# --- what goes wrong


def test_a_metric_that_nobody_measures_is_an_error_before_training() -> None:
    captioner = small_captioner()
    before = weights(captioner)
    with pytest.raises(
        ValueError, match=r"train.metric 'bleu_4_characters' is none of the metrics on dev: cider_d_characters"
    ):
        train(captioner, right_colours, metric="bleu_4")
    assert same(weights(captioner), before)


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 1}])
def test_choosing_needs_references_of_dev(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"small: .*need references of dev images, .* set keep to last"):
        train_captioner(small_captioner(), images(), examples(), None, config(**changes), CAPTIONING, name="small")


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no captions to train on"):
        train_captioner(small_captioner(), images(), examples().iloc[:0], None, config(), CAPTIONING)


@pytest.mark.parametrize("grad_clip", [1.0, None])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    grad_clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def poisoned(*parts: Any, **settings: Any) -> torch.Tensor:
        return teacher_forcing_loss(*parts, **settings) * (float("nan") if next(calls) == 2 else 1.0)

    monkeypatch.setattr("xmodal_kedro.training.caption_phases.teacher_forcing_loss", poisoned)
    captioner, seen = small_captioner(), {}
    message = r"captioner: at step 3, epoch 1 \(teacher_forcing\), lr .*loss is nan.*Lower train.lr"
    with pytest.raises(NonFiniteLossError, match=message):
        train(captioner, report=lambda step, _: seen.__setitem__(step, weights(captioner)), grad_clip=grad_clip)
    assert same(weights(captioner), seen[2])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_training_no_thread_stays_behind(error: type[BaseException]) -> None:
    def stop(step: int, _: dict[str, float]) -> None:
        raise error("stop")

    with pytest.raises(error, match="stop"):
        train(small_captioner(), report=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_batch_is_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kedro.training.captions.processes", lambda: 9)
    with pytest.raises(ValueError, match=r"captioner: train.batch_size 7 is shared by 9 processes"):
        train(small_captioner())
