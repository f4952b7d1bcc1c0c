"""Alignment with momentum features: the loss against loops, the queue, the ramp and the average by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference import blip as reference
from xmodal_kedro.config.member import MomentumConfig
from xmodal_kedro.losses.momentum import (
    NO_KEY,
    FeatureQueue,
    alignment_loss,
    alpha_at,
    equal_keys,
    move_average,
)


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("queued", [0, 5])
def test_the_loss_and_its_gradients_are_those_of_the_papers(alpha: float, queued: int) -> None:
    rows = [unit(4, 6, seed=seed) for seed in range(4)]
    queues = [unit(queued, 6, seed=seed) for seed in (4, 5)]
    keys, queue_keys = [3, 7, 3, 1], [7, 9, NO_KEY, 7, NO_KEY][:queued]
    scale = torch.tensor(0.3).log().neg()
    ours = [rows[0].float().requires_grad_(), rows[1].float().requires_grad_(), scale.clone().requires_grad_()]
    theirs = [rows[0].requires_grad_(), rows[1].requires_grad_(), scale.double().requires_grad_()]
    loss = alignment_loss(
        ours[0],
        ours[1],
        (rows[2].float(), rows[3].float()),
        (torch.cat([rows[2], queues[0]]).float(), torch.cat([rows[3], queues[1]]).float()),
        ours[2],
        equal_keys(torch.tensor(keys), torch.tensor([*keys, *queue_keys])),
        alpha,
    )
    expected = reference.alignment_loss(
        *theirs[:2], rows[2], rows[3], *queues, keys, queue_keys, torch.exp(-theirs[2]), alpha
    )
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad.float(), atol=1e-6, rtol=1e-5)


def test_gradients_do_not_reach_the_average() -> None:
    image, text, image_m, text_m = (unit(3, 4, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(4))
    targets = equal_keys(torch.arange(3), torch.arange(3))
    alignment_loss(image, text, (image_m, text_m), (image_m, text_m), torch.tensor(2.0), targets, 0.4).backward()
    assert all(rows.grad is not None for rows in (image, text))
    assert all(rows.grad is None for rows in (image_m, text_m))


def test_the_loss_is_fp32_under_autocast() -> None:
    rows = [unit(8, 16, seed=seed, dtype=torch.float32) for seed in range(4)]
    args = (tuple(rows[2:]), tuple(rows[2:]), torch.tensor(4.0), equal_keys(torch.arange(8), torch.arange(8)), 0.4)
    plain = alignment_loss(rows[0], rows[1], *args)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alignment_loss(rows[0], rows[1], *args), plain)


def test_targets_are_even_over_equal_keys() -> None:
    targets = equal_keys(torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, NO_KEY, 1]))
    third = 1 / 3
    expected = [[third, 0, third, 0, third], [0, 1, 0, 0, 0], [third, 0, third, 0, third]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def pushed(queue: FeatureQueue, *batches: list[int]) -> list[int]:
    for batch in batches:
        rows = torch.tensor(batch, dtype=torch.float32)[:, None].expand(-1, 2)
        queue.push(rows, -rows, torch.tensor(batch))
    taken = queue.keys != NO_KEY
    assert torch.equal(queue.image[taken], queue.keys[taken, None].expand(-1, 2).float())
    assert torch.equal(queue.text[taken], -queue.image[taken])
    return queue.keys.tolist()


def queue_of(size: int) -> FeatureQueue:
    return FeatureQueue.random(size, 2, 0, torch.device("cpu"))


def test_the_queue_replaces_the_oldest_whatever_the_batch() -> None:
    assert pushed(queue_of(5), [1, 2]) == [1, 2, NO_KEY, NO_KEY, NO_KEY]
    assert pushed(queue_of(5), [1, 2], [3, 4], [5, 6]) == [6, 2, 3, 4, 5]
    assert pushed(queue_of(5), [1, 2], [3, 4], [5, 6], [7, 8]) == [6, 7, 8, 4, 5]
    assert pushed(queue_of(4), [1, 2], [3, 4], [5]) == [5, 2, 3, 4]
    assert pushed(queue_of(4), [1, 2, 3, 4], []) == [1, 2, 3, 4]


def test_of_a_batch_beyond_the_queue_its_end_stays() -> None:
    # Places go on counting: 1 and 2 would have been at 0 and 1, 3 at 2, and 4 and 5 came round to 0 and 1.
    assert pushed(queue_of(3), [1, 2, 3, 4, 5]) == [4, 5, 3]
    assert pushed(queue_of(3), [1, 2, 3, 4, 5], [6]) == [4, 5, 6]


def test_an_empty_queue_is_of_unit_vectors_that_the_seed_decides() -> None:
    queue = FeatureQueue.random(7, 4, 3, torch.device("cpu"))
    again = FeatureQueue.random(7, 4, 3, torch.device("cpu"))
    other = FeatureQueue.random(7, 4, 4, torch.device("cpu"))
    torch.testing.assert_close(queue.image.norm(dim=1), torch.ones(7))
    assert torch.equal(queue.text, again.text)
    assert not torch.equal(queue.text, queue.image)
    assert not torch.equal(queue.text, other.text)
    assert queue.keys.tolist() == [NO_KEY] * 7


@pytest.mark.parametrize(
    ("step", "ramp_epochs", "expected"),
    [(0, 1, 0.0), (5, 1, 0.2), (10, 1, 0.4), (99, 1, 0.4), (5, 2, 0.1), (0, 0, 0.4)],
)
def test_alpha_rises_linearly_then_stays(step: int, ramp_epochs: int, expected: float) -> None:
    assert alpha_at(step, 10, MomentumConfig(alpha=0.4, ramp_epochs=ramp_epochs)) == pytest.approx(expected)


def test_the_average_moves_by_the_rest_of_the_momentum() -> None:
    averages, parameters = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -2.0], requires_grad=True)]
    move_average(averages, parameters, 0.75)
    assert averages[0].tolist() == [1.5, 1.0]
    move_average(averages, parameters, 1.0)
    assert averages[0].tolist() == [1.5, 1.0]
