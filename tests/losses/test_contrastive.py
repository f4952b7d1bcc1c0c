"""The contrastive loss against its loops, and against open_clip where open_clip has it."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from tests.reference import contrastive as reference
from xmodal_kedro.losses.contrastive import contrastive_loss

KEYS = {
    "none": None,
    "different": list(range(7)),
    "some": [3, 1, 3, 2, 1, 1, 9],
    "all": [4] * 7,
}


def features(size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(size, 5, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_(), torch.tensor(1.5, dtype=dtype, requires_grad=True)


def value_and_gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("directions", ["mean", "sum"])
@pytest.mark.parametrize(
    ("keys", "smoothing", "truncation"), list(itertools.product(KEYS, [0.0, 0.1, 0.5], [0.0, 0.05, 0.3, 0.9]))
)
def test_values_and_gradients_are_those_of_the_loops(
    keys: str, smoothing: float, truncation: float, directions: Literal["mean", "sum"]
) -> None:
    inputs = features(7)
    labels = None if KEYS[keys] is None else torch.tensor(KEYS[keys])
    settings = (labels, smoothing, truncation, directions)
    ours = value_and_gradients(contrastive_loss(*inputs, *settings), inputs)
    theirs = value_and_gradients(reference.contrastive_loss(*inputs, *settings), inputs)
    for mine, loop in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), loop, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_plain_case_is_open_clips_loss(size: int) -> None:
    inputs = features(size, dtype=torch.float32)
    image, text, scale = inputs
    theirs = value_and_gradients(ClipLoss()(image, text, scale.exp()), inputs)
    for keys in (None, torch.arange(size)):
        ours = value_and_gradients(contrastive_loss(image, text, scale, keys), inputs)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_the_sum_is_that_of_the_two_cross_entropies() -> None:
    image, text, scale = features(9, dtype=torch.float32)
    logits, labels = scale.exp() * image @ text.T, torch.arange(9)
    expected = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    torch.testing.assert_close(contrastive_loss(image, text, scale, directions="sum"), expected)


@pytest.mark.parametrize(
    ("size", "truncation", "kept"), [(128, 0.05, 121), (480, 0.05, 456), (320, 0.05, 304), (10, 0.9, 1), (3, 0.9, 1)]
)
def test_truncation_keeps_the_pairs_of_the_published_rule(size: int, truncation: float, kept: int) -> None:
    image, text, scale = features(size, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(contrastive_loss(image, text, scale, truncation=truncation), text)
    whole = contrastive_loss(image, text, scale)
    losses = torch.stack([_pair_loss(image, text, scale, row) for row in range(size)])
    torch.testing.assert_close(whole, losses.mean(), atol=1e-5, rtol=1e-5)
    expected = losses.sort().values[:kept].mean()
    torch.testing.assert_close(
        contrastive_loss(image, text, scale, truncation=truncation), expected, atol=1e-5, rtol=1e-5
    )
    assert gradient.isfinite().all()


def _pair_loss(image: Tensor, text: Tensor, scale: Tensor, row: int) -> Tensor:
    label = torch.tensor([row])
    to_text, to_image = scale.exp() * image[row : row + 1] @ text.T, scale.exp() * text[row : row + 1] @ image.T
    return (F.cross_entropy(to_text, label) + F.cross_entropy(to_image, label)) / 2


def test_truncation_drops_the_wrong_captions() -> None:
    """Pairs 0 and 1 have each other's caption: they have the highest losses, so they teach nothing."""
    image = torch.eye(20, dtype=torch.float64)
    text = image[[1, 0, *range(2, 20)]].clone().requires_grad_()
    scale = torch.tensor(math.log(100.0))
    assert contrastive_loss(image, text, scale) > 1
    assert contrastive_loss(image, text, scale, truncation=0.1) < 1e-6


def test_ties_at_the_cut_keep_the_first_rows() -> None:
    """All pairs alike: the loss is theirs, and the same ones are kept each time."""
    image = torch.ones(6, 4) / 2
    text = image.clone().requires_grad_()
    loss = contrastive_loss(image, text, torch.tensor(0.0), truncation=0.5)
    torch.testing.assert_close(loss.item(), math.log(6))
    gradients = [
        torch.autograd.grad(contrastive_loss(image, text, torch.tensor(0.0), truncation=0.5), text)[0] for _ in range(2)
    ]
    assert torch.equal(*gradients)


def test_images_that_share_a_caption_attract_each_others_texts() -> None:
    """Moving text 1 towards image 0 is an error for the diagonal, and right where both have one key."""
    image, scale = torch.eye(3), torch.tensor(1.0)
    moved = F.normalize(image + 0.3 * torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0]]), dim=-1)
    keys = torch.tensor([5, 5, 6])
    assert contrastive_loss(image, moved, scale) > contrastive_loss(image, image, scale)
    assert contrastive_loss(image, moved, scale, keys) < contrastive_loss(image, image, scale, keys)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_softmax_is_fp32_even_under_bf16(autocast: bool) -> None:
    image, text, _ = features(64, dtype=torch.float32)
    scale = torch.tensor(math.log(100.0))
    expected = contrastive_loss(image.bfloat16().float(), text.bfloat16().float(), scale)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = contrastive_loss(image.bfloat16(), text.bfloat16(), scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
