"""The published loss of the captioning system's first stage: soft targets over features that are not normalised.

It is there to repeat the publication; `contrastive_loss` is what to train with. The targets are the model's own
similarities, and gradients run through them as well, so the loss falls far while all features become alike: equal ones
cost log B, random ones as long as a layer norm makes them a multiple of that. Where all are equal it is flat to second
order in every direction that turns features away from each other, and the usual loss curves downwards there: this one
leaves such a place late, and models are reported that never did. It is no minimum all the same. Matching pairs that are
long, and orthogonal to all others, bring the loss to 0, and where pairs are easy to tell apart training gets there.
There is no temperature; the length of the features decides how sharp both softmaxes are.

Source: the loss of the public code moein-shariatnia/OpenAI-CLIP, from which the system took it, and where it was
replaced in 2025 after reports of models whose vectors had all become the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_target_loss(
    image: Tensor,  # [B, D], not normalised
    text: Tensor,  # [B, D], not normalised
) -> Tensor:
    """Cross-entropy of both directions against softmax((T T' + I I') / 2), which gradients run through.

    As published, the targets of image-to-text are the transposed ones of text-to-image, whose rows do not sum to one.
    All is fp32 whatever the features are and whatever autocast says.

    Args:
        image: Features I of the images.
        text: Features T of the texts; row i belongs to image i.

    Returns:
        A scalar: mean over the pairs of half the sum of both directions.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        logits = text @ image.T  # [B, B]
        targets = ((text @ text.T + image @ image.T) / 2).softmax(dim=1)
        to_image = -(targets * logits.log_softmax(dim=1)).sum(1)
        to_text = -(targets.T * logits.T.log_softmax(dim=1)).sum(1)
        return ((to_image + to_text) / 2).mean()
