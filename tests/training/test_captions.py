"""Training a captioner: equal to a plain loop, the same each time and in two processes, and clear errors."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.reference import caption_training as reference
from tests.training import caption_workers
from tests.training.small_captioner import (
    CAPTIONING,
    MEAN,
    STD,
    VIEWS,
    config,
    examples,
    images,
    right_colours,
    same,
    small_captioner,
    train,
    weights,
)
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.training.caption_batches import deal_captions
from xmodal_kedro.training.caption_phases import teacher_forcing_loss
from xmodal_kedro.training.captions import train_captioner
from xmodal_kedro.training.launch import launch
from xmodal_kedro.training.steps import NonFiniteLossError

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
