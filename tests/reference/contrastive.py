"""The contrastive loss as its definition reads: loops over pairs, one exponential at a time."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import torch
from torch import Tensor


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    keys: Tensor | None = None,
    label_smoothing: float = 0.0,
    truncation: float = 0.0,
    directions: str = "mean",
) -> Tensor:
    size = len(image)
    scale = torch.exp(logit_scale)

    def one_direction(queries: Tensor, items: Tensor, row: int) -> Tensor:
        logits = [scale * (queries[row] * items[column]).sum() for column in range(size)]
        total = sum(torch.exp(logit) for logit in logits)
        positives = [
            column for column in range(size) if column == row or (keys is not None and keys[column] == keys[row])
        ]
        loss = torch.zeros((), dtype=image.dtype)
        for column in range(size):
            target = (1.0 - label_smoothing) / len(positives) if column in positives else 0.0
            target += label_smoothing / size
            loss = loss - target * torch.log(torch.exp(logits[column]) / total)
        return loss

    pairs = [one_direction(image, text, row) + one_direction(text, image, row) for row in range(size)]
    kept = max(1, floor((1 - Fraction(str(truncation))) * size))  # in exact decimals: a part of a pair is not kept
    pairs = sorted(pairs, key=Tensor.item)[:kept]
    total = sum(pairs) / len(pairs)
    return total if directions == "sum" else total / 2
