"""What processes do that need no model; a module of its own, so that they start soon."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from torch import Tensor

from xmodal_kedro.losses.gather import gathered, processes, rank
from xmodal_kedro.training.processes import averaged, own_share, said_by_first


class NoSuchKeyError(KeyError):
    """An error of a process."""


def gather_features(size: int) -> dict[str, Tensor]:
    """Rows of all processes, and what a loss over all of them sends back to those of rank 0."""
    everything = torch.arange(2.0 * size * processes()).reshape(-1, 2)
    mine = everything[own_share(len(everything))].clone().requires_grad_()
    together = gathered(mine, grad=True)
    factors = torch.arange(1.0, 2 * size * processes() + 1).reshape(-1, 2)
    (together * factors * (rank() + 1)).sum().backward()
    assert mine.grad is not None
    keys = gathered(torch.arange(size) + 100 * rank())
    plain = gathered(mine)
    assert not plain.requires_grad
    told = averaged({"a": torch.tensor(float(rank())), "b": torch.tensor(3.0)})
    return {
        "rows": together.detach(),
        "gradient": mine.grad,
        "keys": keys,
        "averaged": torch.tensor([told["a"], told["b"]]),
        "said": torch.tensor([said_by_first(rank() == 0), said_by_first(rank() == 1)]),
    }


def fail(how: str) -> None:
    """End badly in rank 1 while rank 0 waits for it."""
    if rank() == 1:
        if how == "error":
            time.sleep(0.5)
            raise NoSuchKeyError("colour")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupt" and rank() == 0:
        os.kill(os.getppid(), signal.SIGINT)
    dist.barrier()
    if how == "interrupt":
        time.sleep(60)
