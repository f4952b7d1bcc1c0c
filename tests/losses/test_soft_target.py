"""The published soft-target loss against its formula, and what it rewards: features that are all the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kedro.losses.contrastive import contrastive_loss
from xmodal_kedro.losses.soft_target import soft_target_loss

PAIRS, WIDTH = 6, 16


def features(size: int = PAIRS, seed: int = 0, length: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (length * torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def as_defined(image: Tensor, text: Tensor) -> Tensor:
    """One exponential at a time; `target[i][j]` is how right image j is for text i."""
    size = len(image)
    logit = [[(text[i] * image[j]).sum() for j in range(size)] for i in range(size)]
    alike = [[((text[i] * text[j]).sum() + (image[i] * image[j]).sum()) / 2 for j in range(size)] for i in range(size)]
    target = [[one.exp() / sum(other.exp() for other in row) for one in row] for row in alike]
    loss = torch.zeros((), dtype=image.dtype)
    for pair in range(size):
        for other in range(size):
            row = sum(logit[pair][k].exp() for k in range(size))
            column = sum(logit[k][pair].exp() for k in range(size))
            loss = loss - target[pair][other] * (logit[pair][other].exp() / row).log() / 2
            loss = loss - target[other][pair] * (logit[other][pair].exp() / column).log() / 2
    return loss / size


@pytest.mark.parametrize("size", [1, 2, PAIRS])
@pytest.mark.parametrize("length", [0.1, 0.7])
def test_value_and_gradients_are_those_of_the_formula(size: int, length: float) -> None:
    inputs = features(size, length=length)
    ours, theirs = soft_target_loss(*inputs), as_defined(*inputs)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-5)
    gradients = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_softmax_is_fp32_even_under_bf16(autocast: bool) -> None:
    image, text = (side.detach().bfloat16() for side in features(length=3.0))
    expected = soft_target_loss(image.float(), text.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = soft_target_loss(image, text)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


# --- collapse


def test_it_prefers_equal_features_to_random_ones_and_shorter_ones_to_longer_ones() -> None:
    """What the published heads give at first is about as long as sqrt(width)."""
    image, text = features()
    losses = [soft_target_loss(length * image, length * text).item() for length in (1.0, 0.5, 0.25, 0.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]
    equal = image[:1].expand(PAIRS, -1)
    assert soft_target_loss(equal, equal).item() == pytest.approx(math.log(PAIRS), abs=1e-4) == losses[-1]


def test_the_right_answer_would_be_better_still() -> None:
    """It is no minimum of the loss that features collapse into: telling all pairs apart brings it to 0."""
    apart = 10 * torch.eye(PAIRS)
    assert soft_target_loss(apart, apart).item() == pytest.approx(0.0, abs=1e-4)
    assert soft_target_loss(apart, apart.roll(1, 0)).item() > 50  # wrong pairs


def slope_and_curvature(loss: Tensor, image: Tensor, text: Tensor, direction: Tensor) -> tuple[float, float]:
    """First and second derivative of a loss where images and texts move by the same [B, D]."""
    slope = sum((grad * direction).sum() for grad in torch.autograd.grad(loss, (image, text), create_graph=True))
    curvature = sum((grad * direction).sum() for grad in torch.autograd.grad(slope, (image, text)))
    return slope.item(), curvature.item()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_parts_equal_features_where_the_usual_loss_does(seed: int) -> None:
    common = F.normalize(torch.ones(WIDTH), dim=0)
    image, text = (common.repeat(PAIRS, 1).requires_grad_() for _ in range(2))
    direction = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(seed))
    direction = direction - (direction @ common)[:, None] * common  # what turns the features
    soft = slope_and_curvature(soft_target_loss(image, text), image, text, direction)
    assert soft == pytest.approx((0.0, 0.0), abs=1e-4)
    usual = contrastive_loss(F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(math.log(1 / 0.07)))
    slope, curvature = slope_and_curvature(usual, image, text, direction)
    assert slope == pytest.approx(0.0, abs=1e-4)
    assert curvature < -1.0
