"""What all training does alike: take a step by finite numbers only, keep the best epoch's weights, show how far it is.

Members and captioners have loops of their own, for their batches and losses differ; this is what the loops share.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from xmodal_kedro.losses.gather import rank
from xmodal_kedro.training.processes import average_gradients

Report = Callable[[int, dict[str, float]], None]


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; raised before the optimiser would spoil the weights."""


def take_step(optimiser: torch.optim.Optimizer, loss: float, rate: float, grad_clip: float | None, where: str) -> None:
    """Average gradients over the processes, clip their norm, and take a step.

    Args:
        optimiser: Whose parameters have the gradients of this process's share of the loss.
        loss: Of the whole batch.
        rate: For this step.
        grad_clip: Norm at most, if there is a limit.
        where: Who trains, and the step, for the error.

    Raises:
        NonFiniteLossError: Naming `where`, rate and what to try.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    average_gradients(parameters)
    # Without a limit nothing is clipped, but the norm is looked at all the same.
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if grad_clip is None else grad_clip).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteLossError(
            f"{where}, lr {rate:.3g}: the loss is {loss}, its gradient's norm {norm}. The weights were not touched by "
            "this step. Lower train.lr, raise train.warmup_steps, keep train.grad_clip set, or train in fp32"
        )
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()


class Best:
    """The weights of the epoch with the highest metric so far, held in memory of the CPU; frozen ones need no copy."""

    def __init__(self, model: nn.Module, *, keeps: bool) -> None:
        """Nothing yet; without `keeps` the epoch is remembered alone."""
        self.model, self.keeps = model, keeps
        self.epoch, self.metric = 0, -math.inf
        self.weights: dict[str, Tensor] = {}

    def offer(self, epoch: int, metric: float) -> None:
        """Take the present weights if their metric is the highest."""
        if epoch == 0 or metric > self.metric:
            self.epoch, self.metric = epoch, -math.inf if math.isnan(metric) else metric
            if self.keeps:
                named = self.model.named_parameters(remove_duplicate=False)
                frozen = {name for name, parameter in named if not parameter.requires_grad}
                state = self.model.state_dict()
                self.weights = {name: state[name].to("cpu", copy=True) for name in state.keys() - frozen}

    def restore(self) -> int:
        """Put the best weights back; returns their epoch."""
        self.model.load_state_dict(self.weights, strict=False)
        return self.epoch


def progress(total: int, name: str, unit: str) -> tqdm:
    """A bar on a terminal alone, and once however many processes there are."""
    return tqdm(total=total, desc=name, unit=unit, disable=None if rank() == 0 else True)
