"""Image-text alignment against momentum features and their queue, with soft targets (ITA of ALBEF and BLIP).

A moving average of the model encodes each batch once more. Its features, and those of the last batches in a queue, are
the candidates of the softmax, so that a small batch meets many negatives. Its opinion of the batch, mixed into the
targets, softens them where captions are weak. ALBEF: arXiv 2107.07651, section 3; BLIP: arXiv 2201.12086, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kedro.config.member import MomentumConfig

NO_KEY = -100  # of a place in the queue that no pair has taken yet; keys of pairs are not negative


@dataclass
class FeatureQueue:
    """The momentum features of the last pairs: a ring of fixed size, which any size of batch may enter."""

    image: Tensor  # [Q, D], L2-normalised
    text: Tensor  # [Q, D], L2-normalised
    keys: Tensor  # [Q] integers
    position: int = 0  # where the next pair goes

    @classmethod
    def random(cls, size: int, width: int, seed: int, device: torch.device) -> FeatureQueue:
        """Fill a queue with random directions, negatives of everything, as BLIP starts: the same in every process."""
        generator = torch.Generator().manual_seed(seed)
        image, text = (F.normalize(torch.randn(size, width, generator=generator), dim=1).to(device) for _ in range(2))
        return cls(image, text, torch.full((size,), NO_KEY, device=device))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, keys: Tensor) -> None:
        """Replace the oldest pairs by these, features [B, D] and keys [B]; of more than Q the last Q stay."""
        size, count = len(self.keys), len(keys)
        entering = torch.arange(max(0, count - size), count, device=keys.device)
        places = (self.position + entering) % size
        for ring, rows in ((self.image, image), (self.text, text), (self.keys, keys)):
            ring[places] = rows[entering].to(ring)
        self.position = (self.position + count) % size


def alpha_at(step: int, steps_per_epoch: int, config: MomentumConfig) -> float:
    """The share of the momentum encoder's opinion: it rises linearly from 0 over `ramp_epochs`, then stays."""
    ramp = config.ramp_epochs * steps_per_epoch
    return config.alpha * min(1.0, step / ramp) if ramp else config.alpha


def equal_keys(keys: Tensor, candidates: Tensor) -> Tensor:
    """Hard targets [B, M] of keys [B] and [M]: even over the candidates of the same key, of which each row has one."""
    equal = (keys[:, None] == candidates[None, :]).float()
    return equal / equal.sum(1, keepdim=True)


def alignment_loss(
    image: Tensor,  # [B, D], L2-normalised
    text: Tensor,  # [B, D], L2-normalised
    momentum: tuple[Tensor, Tensor],  # image and text [B, D] of the moving average, L2-normalised
    candidates: tuple[Tensor, Tensor],  # image and text [M, D] of the moving average: batches, then the queue
    logit_scale: Tensor,  # [], the logarithm of the factor on the cosines
    targets: Tensor,  # [B, M], hard
    alpha: float,
) -> Tensor:
    """Mean cross-entropy of both directions over B pairs, against (1 - alpha) * hard + alpha * soft targets.

    The soft targets are the softmax of the momentum features over the same candidates. All is fp32, whatever autocast
    says.

    Returns:
        A scalar. Gradients reach `image`, `text` and `logit_scale`, never what the moving average made.
    """
    with torch.autocast(image.device.type, enabled=False):
        factor = logit_scale.float().exp()
        (image_candidates, text_candidates), (image_momentum, text_momentum) = candidates, momentum
        total = image.new_zeros((), dtype=torch.float32)
        for rows, opinion, against in (
            (image, image_momentum, text_candidates),
            (text, text_momentum, image_candidates),
        ):
            against = against.detach().float().T  # [D, M]
            with torch.no_grad():
                soft = (factor * opinion.float() @ against).softmax(1)
                mixed = alpha * soft + (1 - alpha) * targets
            total = total + F.cross_entropy(factor * rows.float() @ against, mixed)
        return total / 2


@torch.no_grad()
def move_average(averages: Iterable[Tensor], parameters: Iterable[Tensor], momentum: float) -> None:
    """In place: average = momentum * average + (1 - momentum) * parameter."""
    torch._foreach_lerp_(list(averages), list(parameters), 1.0 - momentum)
