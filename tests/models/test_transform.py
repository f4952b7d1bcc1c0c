"""The batched crop-resize-flip against torchvision, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.models.augment import draw_views, erase, jitter, rand_augment, sharpen
from xmodal_kedro.models.transform import ImageTransform

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # leaves values in 0..255


def noise(count: int, side: int) -> Tensor:
    return torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(side)
    )


def torchvision_view(pixels: Tensor, box: list[int], flipped: bool, size: int, linear: bool = False) -> Tensor:
    image = pixels.permute(2, 0, 1).float()
    mode = InterpolationMode.BILINEAR if linear else InterpolationMode.BICUBIC
    crop = tv.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)
    return (tv.horizontal_flip(crop) if flipped else crop).clamp(0, 255)


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (64, 32), (48, 20), (33, 32)])
def test_views_equal_torchvision_on_each_image_alone(side: int, size: int, interpolation: str) -> None:
    augment = AugmentConfig(scale=[0.1, 0.9], ratio=[0.5, 2.0], interpolation=interpolation, flip=0.5)
    pixels = noise(16, side)
    views = ImageTransform(size, **PLAIN, augment=augment)(pixels, torch.Generator().manual_seed(3))
    boxes, flipped, linear = draw_views(16, side, augment, torch.Generator().manual_seed(3))
    assert 0 < flipped.sum() < 16
    assert (0 < linear.sum() < 16) == (interpolation == "random")
    for row in range(16):
        expected = torchvision_view(pixels[row], boxes[row].tolist(), bool(flipped[row]), size, bool(linear[row]))
        torch.testing.assert_close(views[row], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("side", "size"), [(64, 32), (45, 32), (32, 32)])
def test_without_augmentation_the_whole_image_is_resized(side: int, size: int) -> None:
    pixels = noise(3, side)
    views = ImageTransform(size, **PLAIN)(pixels)
    for row in range(3):
        expected = torchvision_view(pixels[row], [0, 0, side, side], False, size)
        torch.testing.assert_close(views[row], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("linear", [False, True])
def test_views_equal_pillow_to_a_grey_level(linear: bool) -> None:
    """Pillow rounds to bytes between its two passes."""
    pixels = 60 + noise(24, 61) // 2  # in between it also cuts what overshoots
    augment = AugmentConfig(scale=[0.5, 0.9], interpolation="random")
    views = ImageTransform(32, **PLAIN, augment=augment)(pixels, torch.Generator().manual_seed(5))
    boxes, _, chosen = draw_views(24, 61, augment, torch.Generator().manual_seed(5))
    rows = (chosen == linear).nonzero()[:, 0].tolist()
    assert len(rows) > 4
    for row in rows:
        top, left, height, width = boxes[row].tolist()
        image = Image.fromarray(pixels[row].numpy()).crop((left, top, left + width, top + height))
        mode = Image.Resampling.BILINEAR if linear else Image.Resampling.BICUBIC
        expected = torch.from_numpy(np.array(image.resize((32, 32), mode))).permute(2, 0, 1).float()
        assert (views[row] - expected).abs().max() < 1.6
        assert (views[row] - expected).abs().mean() < 0.4


def test_random_interpolation_alone_resizes_the_whole_image() -> None:
    pixels, augment = noise(16, 48), AugmentConfig(interpolation="random")
    views = ImageTransform(32, **PLAIN, augment=augment)(pixels, torch.Generator().manual_seed(5))
    linear = draw_views(16, 48, augment, torch.Generator().manual_seed(5))[2].tolist()
    for row in range(16):
        expected = torchvision_view(pixels[row], [0, 0, 48, 48], False, 32, linear[row])
        torch.testing.assert_close(views[row], expected, atol=1e-3, rtol=0)


def test_the_steps_follow_the_order_of_the_keys() -> None:
    """Distortions see pixels of 0..255 after the crop; what is erased is zero after the normalisation."""
    augment = AugmentConfig(
        scale=[0.5, 0.9],
        flip=0.5,
        rand_augment={"num_ops": 2, "magnitude": 8},
        sharpness={"factor": 0.1},
        jitter={"brightness": 0.1, "contrast": 0.1, "saturation": 0.1},
        erase={"probability": 1.0},
    )
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    pixels, generator = noise(8, 40), torch.Generator().manual_seed(7)
    views = ImageTransform(32, mean, std, augment)(pixels, torch.Generator().manual_seed(7))
    crop_alone = AugmentConfig(scale=[0.5, 0.9], flip=0.5)
    expected = ImageTransform(32, **PLAIN, augment=crop_alone)(pixels, generator)
    expected = rand_augment(expected, augment.rand_augment, generator)
    expected = sharpen(expected, augment.sharpness, generator)
    expected = jitter(expected, augment.jitter, generator)
    expected = erase(tv.normalize(expected / 255, list(mean), list(std)), augment.erase, generator)
    torch.testing.assert_close(views, expected, atol=1e-3, rtol=1e-4)
    assert (views == 0).flatten(1).any(1).all()


def test_normalises_each_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    pixels = noise(2, 8)
    expected = tv.normalize(pixels.permute(0, 3, 1, 2).float() / 255, list(mean), list(std))
    torch.testing.assert_close(ImageTransform(8, mean, std)(pixels), expected)


def test_scaling_up_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(ValueError, match=r"are 32 px, this model wants 64 px.*images.size to at least 64"):
        ImageTransform(64, **PLAIN)(noise(1, 32))


def test_the_generator_decides_the_views() -> None:
    pixels, transform = noise(4, 32), ImageTransform(32, **PLAIN, augment=AugmentConfig(scale=[0.2, 0.8], flip=0.5))
    first, again, other = (transform(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_empty_batch_stays_empty() -> None:
    augment = AugmentConfig(
        scale=[0.2, 0.8],
        interpolation="random",
        flip=0.5,
        rand_augment={},
        sharpness={},
        jitter={"contrast": 1},
        erase={},
    )
    assert ImageTransform(16, **PLAIN, augment=augment)(noise(0, 32), torch.Generator()).shape == (0, 3, 16, 16)
    assert ImageTransform(16, **PLAIN)(noise(0, 32)).shape == (0, 3, 16, 16)


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(4, 100),
    scale=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted),
    ratio=st.tuples(st.floats(0.3, 3.0), st.floats(0.3, 3.0)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for(
    side: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    augment = AugmentConfig(scale=scale, ratio=ratio)
    boxes, _, _ = draw_views(32, side, augment, torch.Generator().manual_seed(seed))
    top, left, height, width = boxes.double().unbind(1)
    assert (boxes >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    # Sides are rounded to whole pixels, by half a pixel at most.
    assert ((width + 0.5) / (height - 0.5) >= ratio[0] - 1e-6).all()
    assert ((width - 0.5) / (height + 0.5) <= ratio[1] + 1e-6).all()
    assert ((width - 0.5) * (height - 0.5) <= scale[1] * side**2 + 1e-6).logical_or(_is_fallback(boxes, side)).all()
    assert ((width + 0.5) * (height + 0.5) >= scale[0] * side**2 - 1e-6).logical_or(_is_fallback(boxes, side)).all()


def _is_fallback(boxes: Tensor, side: int) -> Tensor:
    """No candidate fitted: the largest centred crop, which touches two borders."""
    return (boxes[:, 2:] == side).any(1)
