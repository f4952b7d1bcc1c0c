"""Batch norms of a model whose activations are computed again in backward: a batch counts once in their statistics."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Buffers = dict[str, Tensor | None]


def count_once(model: nn.Module) -> None:
    """Keep running statistics from being updated by checkpointing, which runs a norm forward and again in backward.

    Gradients do not depend on these statistics, but what is computed in eval mode does.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            counted: Buffers = {}
            norm.register_forward_pre_hook(partial(_lend_copies, counted))
            # Called also where checkpointing has all that it needs and breaks off, by an error.
            norm.register_forward_hook(partial(_put_back, counted), always_call=True)


def _lend_copies(counted: Buffers, norm: nn.Module, _given: object) -> None:
    """In backward, let the norm update copies: without any it would save fewer tensors, which checkpointing refuses."""
    if torch._C._current_graph_task_id() != -1:
        counted.update(norm._buffers)
        norm._buffers.update({name: None if one is None else one.clone() for name, one in counted.items()})


def _put_back(counted: Buffers, norm: nn.Module, _given: object, _output: object) -> None:
    norm._buffers.update(counted)
    counted.clear()
