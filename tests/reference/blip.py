"""Alignment and matching of ALBEF (arXiv 2107.07651) and BLIP (arXiv 2201.12086) as the papers define them: loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def softmax(logits: Sequence[Tensor]) -> list[Tensor]:
    exponentials = [torch.exp(logit) for logit in logits]
    return [exponential / sum(exponentials) for exponential in exponentials]


def alignment_loss(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,  # of the same pairs; they are also the first candidates
    text_momentum: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    keys: Sequence[int],
    queue_keys: Sequence[int],
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """(H(y_i2t, p_i2t) + H(y_t2i, p_t2i)) / 2 with y = (1 - alpha) y_hard + alpha p_momentum, ALBEF's equation 6."""
    candidate_keys = [*keys, *queue_keys]
    total = torch.zeros((), dtype=image.dtype)
    for queries, opinions, candidates in (
        (image, image_momentum, [*text_momentum, *text_queue]),
        (text, text_momentum, [*image_momentum, *image_queue]),
    ):
        for row, query in enumerate(queries):
            p = softmax([(query * candidate).sum() / temperature for candidate in candidates])
            q = softmax([(opinions[row] * candidate).sum() / temperature.detach() for candidate in candidates])
            right = [candidate == keys[row] for candidate in candidate_keys]
            for column, probability in enumerate(p):
                hard = 1 / sum(right) if right[column] else 0.0
                target = (1 - alpha) * hard + alpha * q[column]
                total = total - target * torch.log(probability) / len(queries)
    return total / 2


def negative_probabilities(similarity: Tensor, row_keys: Sequence[int], keys: Sequence[int]) -> list[list[float]]:
    """Per row the chance of each candidate to be the negative: its softmax among those with another key."""
    rows = []
    for row, logits in enumerate(similarity.double()):
        weights = [
            0.0 if keys[column] == row_keys[row] else torch.exp(logit - logits.max()).item()
            for column, logit in enumerate(logits)
        ]
        rows.append([weight / sum(weights) if sum(weights) else 0.0 for weight in weights])
    return rows


def matching_loss(pairs: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Mean of -log of the probability of the truth over logits (wrong, right) of pairs [B, 2] and of negatives."""
    losses = [-torch.log(softmax(list(logits))[1]) for logits in pairs]
    losses += [-torch.log(softmax(list(logits))[0]) for logits in negatives]
    return sum(losses) / len(losses)
