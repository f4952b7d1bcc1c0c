"""The symmetric contrastive loss with multi-positive targets, label smoothing and loss truncation, in one function.

Plain InfoNCE (CLIP, arXiv 2103.00020) takes every other row of the batch for a negative. Where many images share a
caption that teaches false negatives; rows with equal keys are positives of each other here, as in SupCon
(arXiv 2004.11362). Truncation drops the pairs with the highest losses, which are mostly wrong captions: the rule of the
first place of the CVPR 2023 foundation-model challenge, track 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    image: Tensor,  # [B, D], L2-normalised
    text: Tensor,  # [B, D], L2-normalised
    logit_scale: Tensor,  # [], the logarithm of the factor on the cosines
    keys: Tensor | None = None,  # [B] integers
    label_smoothing: float = 0.0,
    truncation: float = 0.0,
    directions: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy of both directions, averaged over the pairs of a batch.

    The softmax runs in fp32 whatever the features are and whatever autocast says.

    Args:
        image: Features of the images.
        text: Features of the texts; row i belongs to image i.
        logit_scale: As a backbone owns it, before `exp`.
        keys: Rows with equal keys share the probability of the target evenly; none leaves the diagonal alone.
        label_smoothing: Share of the target that is spread over the whole batch.
        truncation: Share of the pairs, those with the highest sum of both directions, that is dropped;
            `int((1 - truncation) * B)` pairs are kept, but never none.
        directions: Mean or sum of image-to-text and text-to-image.

    Returns:
        A scalar; the mean with neither keys, smoothing nor truncation is open_clip's `ClipLoss`.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = logit_scale.float().exp() * image.float() @ text.float().T  # [B, B]
        targets = _targets(keys, len(logits), logits)
        per_pair = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=label_smoothing
        ) + F.cross_entropy(logits.T, targets, reduction="none", label_smoothing=label_smoothing)
        if truncation:
            # 0.9 of 10 must be 9 although (1 - 0.1) * 10 may come out a hair below.
            kept = max(1, int((1.0 - truncation) * len(per_pair) + 1e-9))
            per_pair = per_pair[per_pair.detach().argsort(stable=True)[:kept]]
        return per_pair.mean() / (2 if directions == "mean" else 1)


def _targets(keys: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Class indices [B] for the plain diagonal, else probabilities [B, B], the same for both directions."""
    if keys is None:
        return torch.arange(size, device=like.device)
    equal = (keys[:, None] == keys[None, :]).to(like)
    return equal / equal.sum(1, keepdim=True)
