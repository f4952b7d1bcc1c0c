"""Packed uint8 squares to a model's normalised input, a whole batch at a time on the device they lie on.

Cropping, resizing and flipping are one separable linear map per image: `rows @ image @ columns.T`, with the antialiased
bicubic weights of Pillow and torchvision in the two small matrices. That makes a batch of different random crops two
batched matrix products, equal to cropping and resizing each image alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_kedro.config.member import AugmentConfig

CANDIDATES = 10  # crops drawn per image before the fall-back, as in torchvision's RandomResizedCrop


@dataclass(frozen=True)
class ImageTransform:
    """Callable: resize to `size`, normalise with `mean` and `std`; with `augment` after a random crop and flip."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: AugmentConfig | None = None

    def __call__(
        self,
        pixels: Tensor,  # [B, S, S, 3] uint8
        generator: torch.Generator | None = None,
    ) -> Tensor:  # [B, 3, size, size], channels last in memory
        """Transform a batch.

        Args:
            pixels: Squares of one size, as packed.
            generator: On the CPU whatever the device, so that a seed means the same views everywhere; needed with
                `augment`.

        Raises:
            ValueError: The squares are smaller than the model's input.
        """
        side = pixels.shape[1]
        if side < self.size:
            raise ValueError(
                f"the packed images are {side} px, this model wants {self.size} px, and images are not scaled up: "
                f"set images.size to at least {self.size} and run data_processing again"
            )
        images = pixels.permute(0, 3, 1, 2).float()
        if self.augment is not None and _is_random(self.augment):
            boxes, flipped = draw_views(len(pixels), side, self.augment, generator)
            top, left, height, width = boxes.to(pixels.device).unbind(1)
            rows = resize_weights(top, height, side, self.size)
            columns = resize_weights(left, width, side, self.size)
            columns = torch.where(flipped.to(pixels.device)[:, None, None], columns.flip(1), columns)
            images = _resample(images, rows[:, None], columns[:, None])
        elif side != self.size:
            whole = torch.tensor([side], device=pixels.device)
            weights = resize_weights(torch.zeros_like(whole), whole, side, self.size)
            images = _resample(images, weights, weights)
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return images.mul_(1 / (255 * std)).sub_(mean / std).contiguous(memory_format=torch.channels_last)


def draw_views(
    count: int, side: int, augment: AugmentConfig, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw crops and flips by the rule of torchvision's RandomResizedCrop.

    Returns:
        boxes [count, 4] of top, left, height, width in whole pixels; flipped [count] bool.
    """

    def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    area = side * side * uniform((count, CANDIDATES), *augment.scale)
    ratio = torch.exp(uniform((count, CANDIDATES), *(math.log(r) for r in augment.ratio)))
    # The last column is the fall-back: the largest centred crop whose ratio is allowed.
    nearest = min(max(1.0, augment.ratio[0]), augment.ratio[1])
    widths = torch.cat([(area * ratio).sqrt(), torch.full((count, 1), side * min(1.0, nearest))], 1).round().long()
    heights = torch.cat([(area / ratio).sqrt(), torch.full((count, 1), side / max(1.0, nearest))], 1).round().long()
    fits = (widths > 0) & (heights > 0) & (widths <= side) & (heights <= side)
    first = fits.int().argmax(1, keepdim=True)
    width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    anywhere = (uniform((count, 2)) * torch.stack([side - height + 1, side - width + 1], 1)).long()
    centred = torch.stack([side - height, side - width], 1) // 2
    corner = torch.where(first == CANDIDATES, centred, anywhere)
    return torch.cat([corner, height[:, None], width[:, None]], 1), uniform((count,)) < augment.flip


def resize_weights(
    start: Tensor,  # [B] first pixel of the crop
    length: Tensor,  # [B] pixels of the crop
    side: int,
    size: int,
) -> Tensor:  # [B, size, side]
    """Weights of an antialiased bicubic resize (a = -0.5) of one axis of a crop; pixels outside of it weigh nothing."""
    scale = (length / size)[:, None, None]
    output = torch.arange(size, device=start.device)[None, :, None]
    position = torch.arange(side, device=start.device)[None, None, :]
    centre = start[:, None, None] + (output + 0.5) * scale
    distance = ((position + 0.5 - centre) / scale.clamp(min=1.0)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights * ((position >= start[:, None, None]) & (position < (start + length)[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Bicubic weights overshoot at edges; pixels have a range.
    return (rows @ images @ columns.transpose(-1, -2)).clamp_(0.0, 255.0)


def _is_random(augment: AugmentConfig) -> bool:
    return augment.flip > 0 or augment.scale != [1.0, 1.0]
