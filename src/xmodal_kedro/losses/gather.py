"""Rows of all processes that train together; without a process group, those of this one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gathered(rows: Tensor, *, grad: bool = False) -> Tensor:
    """The rows of all processes in the order of their ranks: [B, ...] -> [W * B, ...].

    Args:
        rows: As many in every process.
        grad: Let gradients flow back to the process that a row came from. They are summed over the processes, so a
            loss that every process computes over all rows wants its parameters' gradients averaged over processes:
            the result is that of one process with the whole batch.
    """
    if processes() == 1:
        return rows
    if grad:
        together: Tensor = _Gathered.apply(rows)
        return together
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(processes())[rank()]
