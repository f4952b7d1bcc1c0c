"""k micro-batches give the loss and the gradient of one big batch, with dropout and with little memory."""

from __future__ import annotations

import itertools
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.small import SIZE, small_backbone, small_member
from tests.reference import training as reference
from tests.training.test_loop import config, examples, images, same, weights
from xmodal_kedro.config.member import LossConfig
from xmodal_kedro.models.backbone import Backbone, Batch, TrainState
from xmodal_kedro.training.gradient_cache import cached_backward
from xmodal_kedro.training.loop import train

ROWS = 10
KEYS = torch.tensor([0, 1, 0, 2, 3, 3, 3, 4, 5, 6])
LOSSES = {
    "plain": LossConfig(),
    "truncated": LossConfig(truncation=0.25, label_smoothing=0.1),
    "sum": LossConfig(truncation=0.05, directions="sum"),
}


def batch(keys: Tensor | None = KEYS, backbone: Backbone | None = None, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(0)
    texts = [f"number {row} is {'red' * row}" for row in range(ROWS)]
    tokens = (backbone or small_backbone()).tokenize(texts)
    pixels = torch.randn(ROWS, 3, SIZE, SIZE, generator=generator).to(device)
    moved = {name: values.to(device) for name, values in tokens.items()}
    return Batch(pixels, moved, None if keys is None else keys.to(device))


def state(loss: LossConfig = LossConfig()) -> TrainState:  # noqa: B008
    return TrainState(0, 10, 5, loss)


def cached(backbone: Backbone, batch: Batch, state: TrainState, size: int, bf16: bool = False) -> Any:
    """Loss and gradients of the cache, from a known random state."""
    backbone.zero_grad()
    torch.manual_seed(3)
    autocast = torch.autocast(batch.pixels.device.type, torch.bfloat16) if bf16 else nullcontext()
    losses = cached_backward(backbone, batch, state, size, autocast)
    assert not losses["loss"].requires_grad
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return losses["loss"].item(), gradients, torch.get_rng_state()


def in_parts(backbone: Backbone, batch: Batch, state: TrainState, size: int, bf16: bool = False) -> Any:
    torch.manual_seed(3)
    with torch.autocast(batch.pixels.device.type, torch.bfloat16) if bf16 else nullcontext():
        loss, gradients = reference.batch_gradients(backbone, batch, state, size)
    return loss, gradients, torch.get_rng_state()


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    """Equal losses and, to `tolerance` of its largest entry, every gradient."""
    assert ours[0] == pytest.approx(theirs[0], abs=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1]
    for name, gradient in theirs[1].items():
        difference = (ours[1][name] - gradient).abs().max().item()
        assert difference <= tolerance * max(1.0, gradient.abs().max().item()), name
    assert torch.equal(ours[2], theirs[2])  # what is random afterwards is as without the cache


@pytest.mark.parametrize(
    ("loss", "size", "keyed"), [*itertools.product(LOSSES, [1, 3, 4, 5], [True]), ("plain", 4, False)]
)
def test_without_dropout_the_gradient_is_that_of_one_big_batch(loss: str, size: int, keyed: bool) -> None:
    backbone, pairs = small_backbone("open_clip").train(), batch(KEYS if keyed else None)
    whole = in_parts(backbone, pairs, state(LOSSES[loss]), ROWS)
    torch.manual_seed(3)
    assert whole[0] == pytest.approx(backbone.training_step(pairs, state(LOSSES[loss]))["loss"].item(), abs=1e-6)
    assert_equal(cached(backbone, pairs, state(LOSSES[loss]), size), whole)


@pytest.mark.parametrize(("loss", "size"), list(itertools.product(LOSSES, [1, 4, 5])))
def test_dropout_falls_the_same_way_in_both_passes(loss: str, size: int) -> None:
    backbone = small_backbone("chinese_clip").train()
    pairs = batch(backbone=backbone)
    ours = cached(backbone, pairs, state(LOSSES[loss]), size)
    assert_equal(ours, in_parts(backbone, pairs, state(LOSSES[loss]), size))
    torch.manual_seed(4)
    assert backbone.training_step(pairs, state(LOSSES[loss]))["loss"].item() != pytest.approx(ours[0], abs=1e-5)


def test_under_bf16_the_gradient_is_that_of_bf16() -> None:
    backbone, pairs = small_backbone("open_clip").train(), batch()
    # Gradients of weights are summed over the parts in bf16 there, and in fp32 here.
    whole = in_parts(backbone, pairs, state(), 4, bf16=True)
    assert_equal(cached(backbone, pairs, state(), 4, bf16=True), whole, 5e-2)


def test_running_statistics_see_every_micro_batch_once() -> None:
    first, second = (small_backbone("open_clip_resnet").train() for _ in range(2))
    assert_equal(cached(first, batch(), state(), 4), in_parts(second, batch(), state(), 4), 1e-5)
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: n + m)
    assert not same(weights(first), weights(small_backbone("open_clip_resnet")))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_stays_without_gradients(tower: Any) -> None:
    backbone = small_backbone("open_clip")
    backbone.freeze({tower: 0})
    backbone.train()
    ours = cached(backbone, batch(), state(), 4)
    assert_equal(ours, in_parts(backbone, batch(), state(), ROWS))
    assert ("visual.conv1.weight" in "".join(ours[1])) == (tower == "text")


class Activations:
    """Counts the bytes that graphs hold for their backward passes, and their peak."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def keep(self, tensor: Tensor) -> Any:
        class Held:
            value = tensor

        held, size = Held(), tensor.numel() * tensor.element_size()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(held, self.drop, size)
        return held

    def drop(self, size: int) -> None:
        self.alive -= size


def peak(backbone: Backbone, size: int) -> int:
    activations = Activations()
    with torch.autograd.graph.saved_tensors_hooks(activations.keep, lambda held: held.value):
        cached(backbone, batch(), state(), size)
    assert activations.alive == 0
    return activations.peak


def test_only_one_micro_batch_is_held() -> None:
    backbone = small_backbone("open_clip").train()
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    parameters = sum(p.numel() * 4 for p in backbone.parameters())
    one, two, ten = (peak(backbone, size) for size in (1, 2, 10))
    assert 1.7 < (ten - one) / (two - one) / 9 * 2 < 2.3  # linear in the rows of a micro-batch, not of the batch
    assert one < ten / 3 + parameters


def test_the_loop_gives_the_weights_of_the_whole_batch() -> None:
    settings = {"augment": {"scale": [0.5, 1.0], "flip": 0.5}, "loss": LOSSES["truncated"], "lr": 1e-4}
    whole = train(small_backbone("open_clip"), images(), examples(), None, config(**settings))
    parts = train(small_backbone("open_clip"), images(), examples(), None, config(micro_batch=4, **settings))
    assert parts.history["loss"][1:].tolist() == pytest.approx(whole.history["loss"][1:].tolist(), abs=1e-5)
    for name, value in weights(parts.backbone).items():
        torch.testing.assert_close(value, whole.backbone.state_dict()[name], atol=2e-5, rtol=0, msg=name)


def test_a_backbone_that_matches_pairs_cannot_be_cut() -> None:
    backbone = small_backbone("blip")
    with pytest.raises(ValueError, match=r"micro_batch is for backbones whose loss needs nothing but features"):
        train(backbone, images(), examples(), None, small_member(micro_batch=2, keep="last").train)


@pytest.mark.parametrize(("name", "warns"), [("open_clip_resnet", True), ("open_clip", False)])
def test_batch_statistics_are_warned_of(name: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    train(small_backbone(name), images(), examples(), None, config(epochs=1, micro_batch=4), name="clip")
    assert ("clip: BatchNorm normalises each micro-batch on its own" in caplog.text) == warns


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_draws_the_same_dropout_twice(bf16: bool) -> None:
    backbone = small_backbone("chinese_clip").train().cuda()
    pairs = batch(backbone=backbone, device="cuda")
    ours = cached(backbone, pairs, state(), 4, bf16)
    assert_equal(ours, in_parts(backbone, pairs, state(), 4, bf16), 5e-2 if bf16 else 1e-5)
