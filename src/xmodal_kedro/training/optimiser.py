"""AdamW as CLIP is trained with it, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from xmodal_kedro.config.member import TrainConfig


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; those of fewer than two dimensions (norms, biases, scales) do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of a step: linear warm-up to `config.lr`, then constant or half a cosine down to zero.

    Args:
        step: From 0.
        steps: Of the whole training.
        config: Its `lr`, `warmup_steps` and `schedule`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps)))
