"""Rates by hand, and which parameters decay."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from xmodal_kedro.config.member import TrainConfig
from xmodal_kedro.training.optimiser import learning_rate, make_optimiser


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 4, "lr": 1.0, **changes})


def rates(steps: int, steps_per_epoch: int, **changes: Any) -> list[float]:
    return [learning_rate(step, steps_per_epoch, config(**changes)) for step in range(steps)]


def test_the_cosine_warms_up_and_falls_to_zero() -> None:
    found = rates(13, 6, warmup_steps=4)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[8] == pytest.approx(0.5)  # half way from 4 to 12
    assert found[6] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert found[12] == pytest.approx(0.0)  # the step after the last
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))


def test_a_cosine_over_more_epochs_is_cut_off() -> None:
    """Three of twenty epochs: training ends while the rate is still high."""
    found = rates(30, 10, epochs=3, schedule_epochs=20)
    assert found[0] == 1.0
    assert found[20] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.1)))
    assert found == pytest.approx(rates(200, 10, epochs=20)[:30])


@pytest.mark.parametrize("changes", [{}, {"epochs": 3, "schedule_epochs": 4}])
def test_by_epoch_the_rate_of_an_epochs_start_stays(changes: dict[str, int]) -> None:
    found = rates(12, 4, **{"epochs": 4, "schedule": "cosine_by_epoch", **changes})
    high, low = (1 + math.sqrt(0.5)) / 2, (1 - math.sqrt(0.5)) / 2
    assert found == pytest.approx([1.0] * 4 + [high] * 4 + [0.5] * 4)
    assert rates(16, 4, epochs=4, schedule="cosine_by_epoch")[12:] == pytest.approx([low] * 4)


def test_by_epoch_can_warm_up_too() -> None:
    found = rates(8, 4, schedule="cosine_by_epoch", warmup_steps=2)
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5])


def test_constant_is_constant() -> None:
    assert rates(12, 6, schedule="constant", warmup_steps=2) == [0.5, *[1.0] * 11]


@pytest.mark.parametrize("schedule", ["cosine", "cosine_by_epoch", "constant"])
def test_a_warm_up_may_be_longer_than_training(schedule: str) -> None:
    planned = None if schedule == "constant" else 30
    found = rates(50, 10, epochs=5, schedule_epochs=planned, warmup_steps=10_000, schedule=schedule)
    assert found == pytest.approx([(step + 1) / 10_000 for step in range(50)])


@pytest.mark.parametrize(("decay", "decaying"), [("matrices", {"matrix"}), ("all", {"matrix", "bias", "scale"})])
def test_what_decays(decay: str, decaying: set[str]) -> None:
    """Without a gradient's pull a parameter shrinks by lr * weight_decay, or not at all."""
    model = nn.ParameterDict(
        {"matrix": torch.ones(2, 2), "bias": torch.ones(2), "scale": torch.tensor(1.0), "frozen": torch.ones(2, 2)}
    )
    model["frozen"].requires_grad_(False)
    optimiser = make_optimiser(model, config(decay=decay, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimiser.step()
    for name, parameter in model.items():
        expected = 0.95 if name in decaying else 1.0
        assert parameter.detach().flatten().tolist() == pytest.approx([expected] * parameter.numel()), name


def test_all_is_what_torch_does_by_itself() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    settings = config(decay="all", lr=0.1, weight_decay=0.01, betas=[0.9, 0.999], eps=1e-8)
    optimisers = [make_optimiser(ours, settings), torch.optim.AdamW(theirs.parameters(), lr=0.1)]
    for step in range(3):
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            model(torch.full((4, 3), step - 0.5)).square().sum().backward()
            optimiser.step()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs)
