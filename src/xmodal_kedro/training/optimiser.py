"""AdamW as CLIP is trained with it, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from xmodal_kedro.config.optimiser import OptimiserConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over the trainable parameters.

    With `decay: matrices` those of fewer than two dimensions (norms, biases, scales) do not decay; `all` is what torch
    does by default.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [config.decay == "all" or parameter.ndim >= 2 for parameter in parameters]
    groups = [
        {
            "params": [p for p, decay in zip(parameters, decays, strict=True) if decay],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p, decay in zip(parameters, decays, strict=True) if not decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, steps_per_epoch: int, config: OptimiserConfig) -> float:
    """The rate of a step: linear warm-up to `config.lr`, then what `config.schedule` says.

    `cosine` falls from the end of the warm-up to zero at the end of `schedule_epochs`, which may lie beyond the end of
    training; so may the end of the warm-up. `cosine_by_epoch` is BLIP's: lr / 2 * (1 + cos(pi * e / E)) for the whole
    of epoch e of E, e from 0.

    Args:
        step: From 0.
        steps_per_epoch: Steps of one epoch.
        config: Its `lr`, `warmup_steps`, `schedule`, `epochs` and `schedule_epochs`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    epochs = config.schedule_epochs or config.epochs
    if config.schedule == "cosine_by_epoch":
        done = step // steps_per_epoch / epochs
    else:
        done = (step - config.warmup_steps) / (epochs * steps_per_epoch - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
