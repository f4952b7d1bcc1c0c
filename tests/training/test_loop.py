"""The training loop: equal to a plain one, the same each time, and honest about what went wrong."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SIZE, SMALL, small_backbone, small_member
from tests.reference import training as reference
from xmodal_kedro.config.member import LossConfig, MomentumConfig, TrainConfig
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.training.batches import deal
from xmodal_kedro.training.loop import train
from xmodal_kedro.training.state import TrainingState
from xmodal_kedro.training.steps import Best, NonFiniteLossError

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
ROWS = 24


def images() -> np.ndarray:
    """Noisy squares in four colours."""
    generator = np.random.default_rng(0)
    base = np.array([list(COLOURS.values())[row % 4] for row in range(ROWS)])[:, None, None]
    return (base + generator.integers(-25, 25, (ROWS, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def examples() -> pd.DataFrame:
    texts = [f"a {list(COLOURS)[row % 4]} {'car' if row < 12 else 'bus with people in it'}" for row in range(ROWS)]
    return pd.DataFrame({"text": texts, "image_row": range(ROWS), "key": pd.factorize(pd.Series(texts))[0]})


def config(**changes: Any) -> TrainConfig:
    return small_member(**{"batch_size": 7, "keep": "last", "metric": "map_at_10", **changes}).train


def recall(backbone: Backbone) -> dict[str, float]:
    """Share of captions whose nearest image has the right colour."""
    assert not backbone.training
    with torch.no_grad():
        image = backbone.encode_image(backbone.image_transform(train=False)(torch.from_numpy(images())))
        text = backbone.encode_text(backbone.tokenize([f"a {colour} car" for colour in COLOURS]))
    nearest = (torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(image, dim=-1).T).argmax(1)
    return {"map_at_10": float(np.mean([int(row) % 4 == colour for colour, row in enumerate(nearest)]))}


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


# --- what it computes


@pytest.mark.parametrize("truncation", [0.0, 0.2])
@pytest.mark.parametrize("name", ["open_clip", "chinese_clip"])
def test_one_epoch_is_that_of_a_plain_loop(name: str, truncation: float) -> None:
    settings = config(
        epochs=1,
        lr=3e-3,
        warmup_steps=2,
        grad_clip=0.5,
        weight_decay=0.2,
        seed=4,
        loss=LossConfig(label_smoothing=0.1, truncation=truncation),
    )
    plain = _without_dropout(small_backbone(name)).train()
    batches = deal(examples()["key"].to_numpy(), 7, np.random.default_rng([4, 1]))
    losses = reference.train_epoch(plain, images(), examples(), [b.tolist() for b in batches], settings, len(batches))
    reported: dict[int, dict[str, float]] = {}
    result = train(
        _without_dropout(small_backbone(name)), images(), examples(), None, settings, report=reported.__setitem__
    )
    assert [reported[step]["loss"] for step in (1, 2, 3, 4)] == pytest.approx(losses, abs=1e-4)
    for (parameter, ours), theirs in zip(result.backbone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=lambda m, p=parameter: f"{p}: {m}")


def _without_dropout(backbone: Backbone) -> Backbone:
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return backbone


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_same_seed_gives_the_same_weights_whatever_happened_before(name: str) -> None:
    augment = {"scale": [0.5, 1.0], "flip": 0.5}
    results = []
    for seed, disturbance in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        before = torch.random.get_rng_state()
        result = train(small_backbone(name), images(), examples(), None, config(seed=seed, augment=augment))
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights(result.backbone))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_it_learns_colours() -> None:
    result = train(small_backbone("open_clip"), images(), examples(), recall, config(epochs=15, lr=5e-3, keep="best"))
    assert result.best_metric == 1.0
    history = result.history
    assert history["loss"].iloc[-1] < history["loss"].iloc[1] - 0.3
    assert recall(result.backbone) == {"map_at_10": 1.0}


def test_bf16_trains_too() -> None:
    result = train(small_backbone("open_clip"), images(), examples(), None, config(precision="bf16"))
    exact = train(small_backbone("open_clip"), images(), examples(), None, config())
    assert result.history["loss"].iloc[-1] == pytest.approx(exact.history["loss"].iloc[-1], abs=0.05)
    assert result.history["loss"].iloc[-1] != exact.history["loss"].iloc[-1]
    assert next(result.backbone.parameters()).dtype == torch.float32


def test_the_temperature_stays_between_one_and_a_hundred() -> None:
    for start, low, high in ((-3.0, 0.0, 0.1), (9.0, 4.5, 4.6052)):
        backbone = small_backbone("open_clip")
        backbone.logit_scale.data.fill_(start)
        train(backbone, images(), examples(), None, config(epochs=1, lr=1e-4))
        assert low <= backbone.logit_scale.item() <= high


def test_frozen_groups_keep_their_weights() -> None:
    backbone = small_backbone("open_clip_resnet")
    backbone.freeze({"image": 1, "text": 0})
    before = weights(backbone)
    after = weights(train(backbone, images(), examples(), None, config()).backbone)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attnpool" in name or "logit_scale" in name for name in changed)


@pytest.mark.parametrize("sampler", ["spread", "shuffle"])
def test_every_pair_is_seen_once_an_epoch(sampler: str) -> None:
    reported: list[int] = []
    result = train(
        small_backbone("open_clip"),
        images(),
        examples(),
        None,
        config(epochs=3, sampler=sampler),
        report=lambda step, _: reported.append(step),
    )
    assert reported == list(range(1, 13))  # 24 pairs in batches of at most 7
    assert result.history["step"].tolist() == [0, 4, 8, 12]


# --- what it keeps


class Scripted:
    """An evaluation that says what it is told, and remembers the weights it was shown."""

    def __init__(self, *metrics: float) -> None:
        self.metrics, self.shown = list(metrics), []

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        self.shown.append(weights(backbone))
        return {"map_at_10": self.metrics[len(self.shown) - 1], "r1": 0.5}


@pytest.mark.parametrize(
    ("metrics", "best"),
    [((0.1, 0.4, 0.3), 1), ((0.5, 0.4, 0.3), 0), ((0.1, 0.2, 0.2), 1), ((float("nan"), 0.2, 0.1), 1)],
)
def test_the_best_epoch_is_kept_and_the_first_of_equals(metrics: tuple[float, ...], best: int) -> None:
    evaluate = Scripted(*metrics)
    result = train(small_backbone("open_clip"), images(), examples(), evaluate, config(keep="best"))
    assert (result.best_epoch, result.best_metric) == (best, metrics[best])
    assert same(weights(result.backbone), evaluate.shown[best])
    assert len(evaluate.shown) == 3
    assert not result.backbone.training


def test_only_what_trains_is_copied_for_the_best_epoch() -> None:
    backbone, evaluate = small_backbone("open_clip_resnet"), Scripted(0.1, 0.4, 0.3)
    backbone.freeze({"image": 1, "text": 0})
    best = Best(backbone, keeps=True)
    best.offer(0, 0.1)
    names = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    names |= {name for name, _ in backbone.named_buffers()}  # running statistics move without a gradient
    assert best.weights.keys() == names & backbone.state_dict().keys()
    result = train(backbone, images(), examples(), evaluate, config(keep="best"))
    assert same(weights(result.backbone), evaluate.shown[1])
    assert not same(evaluate.shown[2], evaluate.shown[1])


def test_the_last_epoch_is_kept_when_asked() -> None:
    evaluate = Scripted(0.9, 0.4, 0.3)
    result = train(small_backbone("open_clip"), images(), examples(), evaluate, config(keep="last"))
    assert (result.best_epoch, result.best_metric) == (2, 0.3)
    assert same(weights(result.backbone), evaluate.shown[2])


def test_patience_ends_training_early() -> None:
    evaluate = Scripted(0.1, 0.4, 0.3, 0.3, 0.9)
    result = train(
        small_backbone("open_clip"), images(), examples(), evaluate, config(epochs=9, keep="best", patience=2)
    )
    assert result.history["epoch"].tolist() == [0, 1, 2, 3]
    assert result.best_epoch == 1


def test_history_and_reports_begin_before_training() -> None:
    reports: list[tuple[int, dict[str, float]]] = []
    result = train(
        small_backbone("open_clip"),
        images(),
        examples(),
        Scripted(0.1, 0.2, 0.3),
        config(keep="best", warmup_steps=2, lr=1e-3),
        report=lambda step, numbers: reports.append((step, dict(numbers))),
    )
    history = result.history
    assert list(history) == ["epoch", "step", "dev/map_at_10", "dev/r1", "loss", "lr", "pairs_per_second"]
    assert history["dev/map_at_10"].tolist() == [0.1, 0.2, 0.3]
    assert np.isnan(history["loss"][0])
    assert history["pairs_per_second"][1] > 0
    assert reports[0] == (0, {"dev/map_at_10": 0.1, "dev/r1": 0.5})
    steps = [(step, numbers) for step, numbers in reports if "loss" in numbers]
    assert [step for step, _ in steps] == list(range(1, 9))
    assert [numbers["lr"] for _, numbers in steps][:2] == [0.0005, 0.001]
    assert history["loss"][1] == pytest.approx(np.mean([numbers["loss"] for _, numbers in steps[:4]]))
    assert {"loss", "lr", "logit_scale", "pairs_per_second"} == steps[0][1].keys()


# --- what goes on after an interruption


class InterruptedRunError(Exception):
    """As Ctrl-C, or a machine that goes down."""


INTERRUPTED = {
    "plain": ("open_clip", {"augment": {"scale": [0.5, 1.0], "flip": 0.5}, "grad_clip": 0.5}),
    "batch_statistics": ("open_clip_resnet", {"micro_batch": 4}),
    "dropout": ("chinese_clip", {"precision": "bf16", "schedule": "cosine"}),
    "momentum": ("blip", {"loss": LossConfig(momentum=MomentumConfig(queue_size=16, momentum=0.9))}),
}


@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, changes = INTERRUPTED[case]
    settings = config(**{"epochs": 3, "lr": 1e-3, "keep": "best", **changes})
    metrics = (0.1, 0.4, 0.3, 0.35)

    def run(backbone: Backbone, *told: float, stop: int | None = None, state: TrainingState | None = None) -> Any:
        def report(step: int, numbers: dict[str, float]) -> None:
            reported.append(step)
            if step == stop:
                raise InterruptedRunError

        reported: list[int] = []
        evaluate = Scripted(*told)
        result = train(backbone, images(), examples(), evaluate, settings, report=report, state=state, name="clip")
        return result, evaluate, reported

    whole, seen, _ = run(small_backbone(name), *metrics)
    with pytest.raises(InterruptedRunError):
        run(small_backbone(name), *metrics, stop=6, state=TrainingState(tmp_path, "clip", "key"))
    other = small_backbone(name, seed=3)  # what is saved must count, not what it begins with
    with caplog.at_level(logging.INFO):
        again, seen_again, reported = run(other, *metrics[2:], state=TrainingState(tmp_path, "clip", "key"))
    assert "clip: goes on after epoch 1 of an interrupted run" in caplog.text
    assert reported[0] == 5
    assert same(seen_again.shown[-1], seen.shown[-1])  # after the last epoch
    assert (again.best_epoch, again.best_metric) == (whole.best_epoch, whole.best_metric) == (1, 0.4)
    assert same(weights(again.backbone), weights(whole.backbone))
    without_time = [result.history.drop(columns="pairs_per_second") for result in (whole, again)]
    pd.testing.assert_frame_equal(*without_time, check_exact=True)


@pytest.mark.parametrize("patience", [None, 1])
def test_a_training_that_was_complete_is_not_trained_again(patience: int | None, tmp_path: Path) -> None:
    settings, state = config(keep="best", patience=patience), TrainingState(tmp_path, "clip", "key")
    first = train(small_backbone("open_clip"), images(), examples(), Scripted(0.5, 0.4, 0.3), settings, state=state)
    second = train(small_backbone("open_clip", seed=1), images(), examples(), Scripted(), settings, state=state)
    assert len(first.history) == (3 if patience is None else 2)
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    assert second.best_epoch == 0
    assert same(weights(second.backbone), weights(first.backbone))


# --- what goes wrong


def test_a_metric_that_nobody_measures_is_an_error_before_training() -> None:
    backbone = small_backbone("open_clip")
    before = weights(backbone)
    with pytest.raises(ValueError, match=r"train.metric 'r5' is none of the metrics on dev: map_at_10"):
        train(backbone, images(), examples(), recall, config(metric="r5"))
    assert same(weights(backbone), before)


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 1}])
def test_choosing_needs_an_evaluation(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need an evaluation on dev"):
        train(small_backbone("open_clip"), images(), examples(), None, config(**changes))


@pytest.mark.parametrize("grad_clip", [1.0, None])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(grad_clip: float | None) -> None:
    backbone = small_backbone("open_clip")
    step_of_library = backbone.training_step

    def poisoned(batch: Any, state: Any) -> dict[str, torch.Tensor]:
        losses = step_of_library(batch, state)
        return {"loss": losses["loss"] * (float("nan") if state.step == 2 else 1.0)}

    seen: dict[int, dict[str, torch.Tensor]] = {}
    backbone.training_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"vit_b: at step 3 of 8, epoch 1, lr .*loss is nan.*Lower train.lr"):
        train(
            backbone,
            images(),
            examples(),
            None,
            config(grad_clip=grad_clip),
            report=lambda step, _: seen.__setitem__(step, weights(backbone)),
            name="vit_b",
        )
    assert same(weights(backbone), seen[2])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_whatever_ends_training_no_thread_stays_behind(error: type[BaseException]) -> None:
    def stop(step: int, _: dict[str, float]) -> None:
        if step == 2:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        train(small_backbone("open_clip"), images(), examples(), None, config(), report=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_images_that_cannot_be_read_are_an_error_of_training() -> None:
    class Broken(np.ndarray):
        def __getitem__(self, rows: Any) -> Any:
            raise OSError("cut short")

    with pytest.raises(OSError, match="cut short"):
        train(small_backbone("open_clip"), images().view(Broken), examples(), None, config())


def test_packed_images_must_be_large_enough() -> None:
    small = np.zeros((ROWS, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"packed images are 16 px.*images.size"):
        train(small_backbone("open_clip"), small, examples(), None, config())
