"""Checkpointed activations change neither gradients nor what batch norms remember, in training as in eval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small import SIZE, TEXTS, small_backbone
from xmodal_kedro.config.member import LossConfig
from xmodal_kedro.models.backbone import Batch, TrainState
from xmodal_kedro.models.batch_norm import count_once

STATE = TrainState(step=0, steps=1, steps_per_epoch=1, loss=LossConfig())
PIXELS = torch.randn(len(TEXTS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def stepped(family: str, checkpointing: bool) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """Gradients and buffers after two steps forward and backward."""
    backbone = small_backbone(family)
    for _ in range(1 + checkpointing):  # asking for it twice is asking for it once
        if checkpointing:
            backbone.set_grad_checkpointing()
    backbone.train()
    torch.manual_seed(0)  # of dropout
    for _ in range(2):
        backbone.training_step(Batch(PIXELS, backbone.tokenize(TEXTS)), STATE)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return gradients, {name: buffer.clone() for name, buffer in backbone.named_buffers()}


@pytest.mark.parametrize("family", ["res2net_gpt", "open_clip_timm"])
def test_a_step_is_the_same_to_the_bit(family: str) -> None:
    (gradients, buffers), (plain, plain_buffers) = stepped(family, True), stepped(family, False)
    for found, wanted in ((gradients, plain), (buffers, plain_buffers)):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert (found[name] is None) if tensor is None else torch.equal(found[name], tensor), name
    counts = [tensor for name, tensor in plain_buffers.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 for count in counts)


def test_a_norm_at_the_very_end_and_one_that_remembers_nothing() -> None:
    """Checkpointing breaks off inside the last norm, once it has what backward asks for."""
    checkpoint: Any = torch.utils.checkpoint.checkpoint
    found = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 4), nn.BatchNorm1d(4)
        )
        count_once(model)
        rows, mean = torch.randn(6, 4, requires_grad=True), model[3].running_mean
        for _ in range(3):
            states = checkpoint(model, rows, use_reentrant=False) if checkpointing else model(rows)
            states.square().sum().backward()
        assert model[3].running_mean is mean
        found.append([*(buffer.clone() for buffer in model.buffers()), rows.grad, model.eval()(rows).detach()])
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)
    assert found[0][2] == 3
