"""Packed uint8 squares to a model's normalised input, a whole batch at a time on the device they lie on.

Cropping, resizing and flipping are one separable linear map per image: `rows @ image @ columns.T`, with the antialiased
bicubic or bilinear weights of Pillow and torchvision in the two small matrices. That makes a batch of different random
crops two batched matrix products, equal to cropping and resizing each image alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.models.augment import distort, draw_views, erase


@dataclass(frozen=True)
class ImageTransform:
    """Callable: resize to `size`, normalise with `mean` and `std`; with `augment` a random view of each image."""

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
        images = self._resized(pixels.permute(0, 3, 1, 2).float(), generator)
        if self.augment is not None:
            images = distort(images, self.augment, generator)
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        images = images.mul_(1 / (255 * std)).sub_(mean / std)
        if self.augment is not None and self.augment.erase is not None:
            images = erase(images, self.augment.erase, generator)
        return images.contiguous(memory_format=torch.channels_last)

    def _resized(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whole images, or with `augment` crops, as [B, 3, size, size]."""
        side, device = images.shape[-1], images.device
        if self.augment is not None and _crops(self.augment):
            views = draw_views(len(images), side, self.augment, generator)
            boxes, flipped, linear = (drawn.to(device) for drawn in views)
            top, left, height, width = boxes.unbind(1)
            rows = resize_weights(top, height, side, self.size, linear)
            columns = resize_weights(left, width, side, self.size, linear)
            columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
            return _resample(images, rows[:, None], columns[:, None])
        if side == self.size:
            return images
        whole = torch.tensor([side], device=device)
        weights = resize_weights(torch.zeros_like(whole), whole, side, self.size, torch.zeros_like(whole).bool())
        return _resample(images, weights, weights)


def resize_weights(
    start: Tensor,  # [B] first pixel of the crop
    length: Tensor,  # [B] pixels of the crop
    side: int,
    size: int,
    linear: Tensor,  # [B] bool
) -> Tensor:  # [B, size, side]
    """Weights of an antialiased resize of one axis of a crop, bicubic (a = -0.5) or `linear`; others weigh nothing."""
    scale = (length / size)[:, None, None]
    output = torch.arange(size, device=start.device)[None, :, None]
    position = torch.arange(side, device=start.device)[None, None, :]
    centre = start[:, None, None] + (output + 0.5) * scale
    distance = ((position + 0.5 - centre) / scale.clamp(min=1.0)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    cubic = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where(linear[:, None, None], (1 - distance).clamp(min=0.0), cubic)
    weights = weights * ((position >= start[:, None, None]) & (position < (start + length)[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Bicubic weights overshoot at edges; pixels have a range.
    return (rows @ images @ columns.transpose(-1, -2)).clamp_(0.0, 255.0)


def _crops(augment: AugmentConfig) -> bool:
    return augment.flip > 0 or augment.scale != [1.0, 1.0] or augment.interpolation == "random"
