"""Image-text matching with hard negatives (ITM of ALBEF and BLIP): which wrong pairs to show, and the loss over them.

Per text an image of another pair is drawn, the likelier the more similar it is, and per image a text; a head then tells
the pairs from these. ALBEF: arXiv 2107.07651, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kedro.losses.gather import gathered, processes


@torch.no_grad()
def draw_negatives(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a hard negative per row from softmax(similarity), leaving out what is right for the row.

    What is left out is so before the softmax: a sharp softmax, all of whose weight is on right candidates, still has a
    negative. Torch's global generator draws.

    Args:
        similarity: [B, M] logits of candidates.
        same: [B, M], where a candidate has the key of the row.

    Returns:
        Columns [B], and whether there is a negative at all [B]; where there is none the column means nothing.
    """
    exists = ~same.all(1)
    logits = similarity.float().masked_fill(same, -torch.inf).masked_fill(~exists[:, None], 0.0)
    return torch.multinomial(logits.softmax(1), 1).squeeze(1), exists


def matching_loss(logits: Tensor, has_negative_image: Tensor, has_negative_text: Tensor) -> Tensor:
    """Mean cross-entropy over B pairs and their negatives.

    Args:
        logits: [3 * B, 2], of (wrong, right): the pairs, texts with their negative images, images with their texts.
        has_negative_image: [B]; where there is none the row does not count.
        has_negative_text: [B], likewise.

    Returns:
        A scalar, computed in fp32.
    """
    size = len(has_negative_image)
    labels = torch.zeros(3 * size, dtype=torch.long, device=logits.device)
    labels[:size] = 1
    counts = torch.cat([torch.ones_like(has_negative_image), has_negative_image, has_negative_text]).float()
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        return (losses * counts).sum() / counts.sum()


def padded(tokens: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Tokens [B, L <= length] with columns that the attention mask hides: [B, length]."""
    return {name: F.pad(values, (0, length - values.shape[1])) for name, values in tokens.items()}


def gathered_tokens(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens of all processes in the order of their ranks, as long as the longest."""
    if processes() == 1:
        return tokens
    mask = tokens["attention_mask"]
    longest = int(gathered(torch.tensor([mask.shape[1]], device=mask.device)).max())
    return {name: gathered(values) for name, values in padded(tokens, longest).items()}
