"""Teacher forcing as a plain loop: each caption with its own copy of its image, token by token, AdamW written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.config.captioning import CaptionTrainConfig
from xmodal_kedro.models.captioner import Captioner


def caption_ids(tokens: tuple[str, ...], text: str, positions: int) -> list[int]:
    """Start 2, one id per character (unknown 1), end 3, cut at `positions`."""
    body = [tokens.index(character) if character in tokens else 1 for character in text]
    return [2, *body[: positions - 2], 3]


def batch_loss(
    captioner: Captioner, images: list[Tensor], captions: list[list[int]], padded_to: int | None = None
) -> Tensor:
    """Mean of -log p(token) over all tokens of captions, image i [3, H, W] belonging to caption i.

    With `padded_to` zeros fill captions up to this length, and count as tokens.
    """
    surprises = []
    for image, ids in zip(images, captions, strict=True):
        whole = ids if padded_to is None else ids + [0] * (padded_to - len(ids))
        logits = captioner(image[None], torch.tensor([whole]))[0]
        for place, token in enumerate(whole):
            surprises.append(logits[place].logsumexp(0) - logits[place, token])
    return sum(surprises, torch.tensor(0.0)) / len(surprises)


def train(
    captioner: Captioner,
    pixels: np.ndarray,
    batches: list[list[tuple[int, str]]],
    config: CaptionTrainConfig,
    mean: float,
    std: float,
) -> list[float]:
    """Train in place, at a constant rate and without decay, on batches of (image row, text); returns the losses."""
    moments: dict[str, Any] = {}
    losses = []
    for step, batch in enumerate(batches, start=1):
        images = [(torch.tensor(pixels[row]).permute(2, 0, 1) / 255 - mean) / std for row, _ in batch]
        ids = [caption_ids(captioner.vocabulary.tokens, text, captioner.gpt.sizes.block_size) for _, text in batch]
        captioner.zero_grad()
        padded_to = None if config.ignore_padding else captioner.gpt.sizes.block_size
        loss = batch_loss(captioner, images, ids, padded_to)
        loss.backward()
        losses.append(loss.item())
        gradients = {name: one.grad for name, one in captioner.named_parameters() if one.grad is not None}
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        shrink = 1.0 if config.grad_clip is None else min(1.0, config.grad_clip / (norm + 1e-6))
        with torch.no_grad():
            for name, parameter in captioner.named_parameters():
                if name not in gradients:
                    continue
                first, second = moments.get(name, (0.0, 0.0))
                gradient = gradients[name] * shrink
                first = config.betas[0] * first + (1 - config.betas[0]) * gradient
                second = config.betas[1] * second + (1 - config.betas[1]) * gradient**2
                moments[name] = (first, second)
                debiased = first / (1 - config.betas[0] ** step)
                spread = (second / (1 - config.betas[1] ** step)).sqrt() + config.eps
                parameter.sub_(config.lr * debiased / spread)
    return losses
