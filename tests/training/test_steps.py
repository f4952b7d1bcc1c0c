"""A step is taken by finite numbers only, and clips no more than it is told."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal_kedro.training.steps import NonFiniteLossError, take_step


def optimiser(gradient: float) -> torch.optim.SGD:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([3.0, gradient])
    return torch.optim.SGD([weight], lr=99.0)


def weights(one: torch.optim.Optimizer) -> list[float]:
    return one.param_groups[0]["params"][0].tolist()


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize(("loss", "gradient"), [(0.5, math.nan), (0.5, math.inf), (math.nan, 4.0)])
def test_what_is_not_finite_leaves_the_weights_alone(loss: float, gradient: float, grad_clip: float | None) -> None:
    one = optimiser(gradient)
    with pytest.raises(NonFiniteLossError, match=r"it: step 3, lr 0\.1: .*not touched"):
        take_step(one, loss, 0.1, grad_clip, "it: step 3")
    assert weights(one) == [1.0, 2.0]


@pytest.mark.parametrize(("grad_clip", "scale"), [(None, 1.0), (10.0, 1.0), (0.5, 0.1)])
def test_a_norm_of_5_is_clipped_to_the_limit(grad_clip: float | None, scale: float) -> None:
    one = optimiser(4.0)
    take_step(one, 0.5, 0.1, grad_clip, "it")
    assert weights(one) == pytest.approx([1.0 - 0.1 * 3.0 * scale, 2.0 - 0.1 * 4.0 * scale], rel=1e-5)
