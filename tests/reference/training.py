"""Training as a plain loop: one thread, images one by one, captions padded, AdamW and schedule written out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference.contrastive import contrastive_loss
from xmodal_kedro.config.member import TrainConfig
from xmodal_kedro.models.backbone import Backbone, Batch, TrainState


def batch_gradients(backbone: Backbone, batch: Batch, state: TrainState, size: int) -> tuple[float, dict[str, Tensor]]:
    """Loss of a batch and its gradients, computed in parts of `size` rows whose graphs are all kept till the end."""
    images, texts = [], []
    for row in range(0, len(batch.pixels), size):
        tokens = {name: values[row : row + size] for name, values in batch.tokens.items()}
        image, text = backbone.features(Batch(batch.pixels[row : row + size], tokens))
        images.append(image)
        texts.append(text)
    loss = backbone.feature_losses(torch.cat(images), torch.cat(texts), batch.keys, state)["loss"]
    backbone.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def train_epoch(
    backbone: Backbone,
    pixels: np.ndarray,
    examples: pd.DataFrame,
    batches: list[list[int]],
    config: TrainConfig,
    steps: int,
) -> list[float]:
    """Train in place on the batches in their order; returns the losses."""
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in backbone.named_parameters()}
    losses = []
    for step, rows in enumerate(batches):
        if step < config.warmup_steps:
            rate = config.lr * (step + 1) / config.warmup_steps
        else:
            done = (step - config.warmup_steps) / (steps - config.warmup_steps)
            rate = config.lr * (1 + math.cos(math.pi * done)) / 2
        image_rows = [int(examples["image_row"].iloc[row]) for row in rows]
        texts = [str(examples["text"].iloc[row]) for row in rows]
        keys = torch.tensor([int(examples["key"].iloc[row]) for row in rows])
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        images = torch.stack(
            [((torch.tensor(pixels[row]) / 255 - mean) / std).permute(2, 0, 1) for row in image_rows]
        )  # of the model's size: no resize
        loss = contrastive_loss(
            F.normalize(backbone.encode_image(images), dim=-1),
            F.normalize(backbone.encode_text(backbone.tokenize(texts)), dim=-1),
            backbone.logit_scale,
            keys,
            config.loss.label_smoothing,
            config.loss.truncation,
        )
        backbone.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        shrink = 1.0 if config.grad_clip is None else min(1.0, config.grad_clip / (norm + 1e-6))
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if name not in gradients:
                    continue
                first, second = moments[name]
                gradient = gradients[name] * shrink
                first.mul_(config.betas[0]).add_((1 - config.betas[0]) * gradient)
                second.mul_(config.betas[1]).add_((1 - config.betas[1]) * gradient**2)
                if parameter.ndim >= 2:
                    parameter.mul_(1 - rate * config.weight_decay)
                debiased = first / (1 - config.betas[0] ** (step + 1))
                spread = (second / (1 - config.betas[1] ** (step + 1))).sqrt() + config.eps
                parameter.sub_(rate * debiased / spread)
            backbone.logit_scale.clamp_(0, math.log(100))
    return losses
