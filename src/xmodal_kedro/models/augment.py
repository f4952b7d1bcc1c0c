"""Random views of training images, a batch at a time on its device: the draws, and the operations that they choose.

Every draw comes from one generator on the CPU, so a seed means the same views on every device. Operations take float
pixels [B, 3, H, W] of 0..255 and a number per image, and round nothing (Equalize, which counts grey levels, rounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import equalize

from xmodal_kedro.config.member import (
    AugmentConfig,
    EraseConfig,
    JitterConfig,
    RandAugmentConfig,
    RandAugmentOp,
    SharpnessConfig,
)

CANDIDATES = 10  # boxes drawn per image before the fall-back, as in torchvision
MAGNITUDES = 10  # of RandAugment
SHEAR, TRANSLATE = 0.3, 10.0  # at the full magnitude: pixels per pixel, pixels (whatever the size of the image)
FILL = 128.0  # of what a shear or a translation uncovers

Generator = torch.Generator | None


def draw_views(count: int, side: int, augment: AugmentConfig, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw crops and flips by the rule of torchvision's RandomResizedCrop, and filters as timm does.

    Returns:
        boxes [count, 4] of top, left, height, width in whole pixels; flipped [count] bool; linear [count] bool, false
        where the resize is bicubic.
    """
    area = side * side * _uniform((count, CANDIDATES), generator, *augment.scale)
    ratio = torch.exp(_uniform((count, CANDIDATES), generator, *map(math.log, augment.ratio)))
    # The last column is the fall-back: the largest centred crop whose ratio is allowed.
    nearest = min(max(1.0, augment.ratio[0]), augment.ratio[1])
    widths = torch.cat([(area * ratio).sqrt(), torch.full((count, 1), side * min(1.0, nearest))], 1).round().long()
    heights = torch.cat([(area / ratio).sqrt(), torch.full((count, 1), side / max(1.0, nearest))], 1).round().long()
    fits = (widths > 0) & (heights > 0) & (widths <= side) & (heights <= side)
    first = fits.int().argmax(1, keepdim=True)
    width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    anywhere = (_uniform((count, 2), generator) * torch.stack([side - height + 1, side - width + 1], 1)).long()
    centred = torch.stack([side - height, side - width], 1) // 2
    corner = torch.where(first == CANDIDATES, centred, anywhere)
    flipped = _uniform((count,), generator) < augment.flip
    linear = torch.zeros(count, dtype=torch.bool)
    if augment.interpolation == "random":
        linear = _uniform((count,), generator) < 0.5
    return torch.cat([corner, height[:, None], width[:, None]], 1), flipped, linear


def distort(images: Tensor, augment: AugmentConfig, generator: Generator) -> Tensor:
    """What comes between the crop and the normalisation of images [B, 3, H, W], floats in 0..255."""
    if augment.rand_augment is not None:
        images = rand_augment(images, augment.rand_augment, generator)
    if augment.sharpness is not None:
        images = sharpen(images, augment.sharpness, generator)
    if augment.jitter is not None:
        images = jitter(images, augment.jitter, generator)
    return images


def rand_augment(images: Tensor, config: RandAugmentConfig, generator: Generator) -> Tensor:
    """RandAugment (arXiv 1909.13719) as BLIP trains with it.

    `num_ops` operations per image are drawn with replacement, each is applied with its probability, shears and
    translations to either side. Of BLIP's own operations on uint8, ours differ by what they cut off: at most one grey
    level an operation, and OpenCV's 1/32 pixel in the warps.

    Args:
        images: [B, 3, H, W] floats in 0..255; not changed.
        config: Operations, magnitude, probability.
        generator: On the CPU.
    """
    shape = (len(images), config.num_ops)
    drawn = torch.randint(len(config.ops), shape, generator=generator)
    applied = _uniform(shape, generator) < config.probability
    sign = torch.where(_uniform(shape, generator) < 0.5, -1.0, 1.0).float()
    images = images.clone()
    for turn in range(config.num_ops):
        for number, name in enumerate(config.ops):
            chosen = applied[:, turn] & (drawn[:, turn] == number)
            operation = partial(apply_op, name=name, magnitude=config.magnitude)
            _change(images, chosen, operation, sign[:, turn])
    return images


def apply_op(images: Tensor, sign: Tensor, name: RandAugmentOp, magnitude: int) -> Tensor:
    """One operation of RandAugment on images [B, 3, H, W]; `sign` [B] of +1 and -1 is the side of shears and shifts."""
    level = magnitude / MAGNITUDES
    factor = torch.full_like(sign, 1.8 * level + 0.1)
    none = torch.zeros_like(sign)
    if name == "AutoContrast":
        return auto_contrast(images)
    if name == "Brightness":
        return brightness(images, factor)
    if name == "Sharpness":
        return sharpness(images, factor)
    if name == "Equalize":
        return equalize(images.round().to(torch.uint8)).to(images.dtype)
    # A pixel takes its value from where the inverse of the published matrix puts it.
    if name == "ShearX":
        return warp(images, -SHEAR * level * sign, none, none, none)
    if name == "ShearY":
        return warp(images, none, -SHEAR * level * sign, none, none)
    if name == "TranslateX":
        return warp(images, none, none, TRANSLATE * level * sign, none)
    if name == "TranslateY":
        return warp(images, none, none, none, TRANSLATE * level * sign)
    return images


def sharpen(images: Tensor, config: SharpnessConfig, generator: Generator) -> Tensor:
    """torchvision's RandomAdjustSharpness, drawn per image of [B, 3, H, W] floats in 0..255."""
    chosen = _uniform((len(images),), generator) < config.probability
    images = images.clone()
    _change(images, chosen, sharpness, torch.full((len(images),), config.factor))
    return images


def jitter(images: Tensor, config: JitterConfig, generator: Generator) -> Tensor:
    """torchvision's ColorJitter without hue, factors and order drawn per image of [B, 3, H, W] floats in 0..255."""
    ranges = ((brightness, config.brightness), (contrast, config.contrast), (saturation, config.saturation))
    order = _uniform((len(images), len(ranges)), generator).argsort(1)
    factors = [_uniform((len(images),), generator, 1 - width, 1 + width).float() for _, width in ranges]
    images = images.clone()
    for turn in range(len(ranges)):
        for number, (operation, width) in enumerate(ranges):
            if width:
                _change(images, order[:, turn] == number, operation, factors[number])
    return images


def erase(images: Tensor, config: EraseConfig, generator: Generator) -> Tensor:
    """torchvision's RandomErasing with zeros: one box per image of [B, 3, H, W], drawn with its probability.

    An image for which no candidate box is smaller than itself stays whole.
    """
    count, height, width = len(images), *images.shape[-2:]
    chosen = _uniform((count,), generator) < config.probability
    area = height * width * _uniform((count, CANDIDATES), generator, *config.scale)
    ratio = torch.exp(_uniform((count, CANDIDATES), generator, *map(math.log, config.ratio)))
    heights, widths = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    size = torch.cat([heights.gather(1, first), widths.gather(1, first)], 1) * (chosen & fits.any(1))[:, None]
    corner = (_uniform((count, 2), generator) * (torch.tensor([height, width]) - size + 1)).long()
    start, stop = corner.to(images.device), (corner + size).to(images.device)
    row, column = (torch.arange(length, device=images.device) for length in (height, width))
    rows = (row >= start[:, :1]) & (row < stop[:, :1])
    columns = (column >= start[:, 1:]) & (column < stop[:, 1:])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images [B, 3, H, W] with black: factor [B] 1 leaves them, 0 is black."""
    return _blend(images, torch.zeros_like(images[:, :, :1, :1]), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images [B, 3, H, W] with their mean grey level: factor [B] 1 leaves them, 0 is grey alone."""
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images [B, 3, H, W] with their grey levels: factor [B] 1 leaves them, 0 has no colour."""
    return _blend(images, _grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images [B, 3, H, W] with Pillow's SMOOTH of them, all but the border: factor [B] 1 leaves them."""
    smooth = images.clone()
    if min(images.shape[-2:]) > 2:
        inner = smooth[..., 1:-1, 1:-1]
        # Nine neighbours count 1 each, and the pixel itself 4 more.
        inner.copy_((9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13)
    return _blend(images, smooth, factor)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch every channel of images [B, 3, H, W] to 0..255; one of a single grey level stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low)), images)


def warp(images: Tensor, shear_x: Tensor, shear_y: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Take each pixel (x, y) of images [B, 3, H, W] from (x + shear_x y + shift_x, y + shear_y x + shift_y).

    Coordinates count pixels from the centre of the first one, arguments are [B]. Between pixels, and at the border of
    what lies outside (`FILL`), values are interpolated linearly.
    """
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device, dtype=images.dtype)[:, None].expand(height, width)
    column = torch.arange(width, device=images.device, dtype=images.dtype)[None, :].expand(height, width)
    shear_x, shear_y, shift_x, shift_y = (values[:, None, None] for values in (shear_x, shear_y, shift_x, shift_y))
    x, y = column + shear_x * row + shift_x, row + shear_y * column + shift_y
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images - FILL, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + FILL


def _change(images: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor], numbers: Tensor) -> None:
    """Put the chosen images [B bool] through an operation that takes a number per image, in place."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        places = rows.to(images.device)
        images[places] = operation(images[places], numbers[rows].to(images.device, images.dtype))


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, factor[:, None, None, None]).clamp_(0.0, 255.0)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _uniform(shape: tuple[int, ...], generator: Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
