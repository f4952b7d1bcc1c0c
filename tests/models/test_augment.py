"""Augmentations against cases computed by hand, a slow reference, Pillow and torchvision."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from tests.reference import augment as reference
from xmodal_kedro.config.member import (
    RAND_AUGMENT_OPS,
    EraseConfig,
    JitterConfig,
    RandAugmentConfig,
    RandAugmentOp,
    SharpnessConfig,
)
from xmodal_kedro.models import augment as ours

WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, height: int = 12, width: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=seeded(seed)).float()


def grey(rows: list[list[float]]) -> Tensor:
    """One image of three equal channels."""
    return torch.tensor(rows).float().expand(1, 3, len(rows), len(rows[0])).clone()


def to_numpy(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def op(image: Tensor, name: RandAugmentOp, magnitude: int, sign: int = 1) -> Tensor:
    return ours.apply_op(image, torch.full((len(image),), float(sign)), name, magnitude)


def assert_equal(images: Tensor, expected: Tensor | list[list[float]], atol: float = 0.01) -> None:
    expected = grey(expected) if isinstance(expected, list) else expected
    torch.testing.assert_close(images, expected, atol=atol, rtol=0)


# --- operations, by hand


@pytest.mark.parametrize(
    ("magnitude", "expected"), [(0, [[1, 10, 25.5]]), (5, [[10, 100, 255]]), (10, [[19, 190, 255]])]
)
def test_brightness_multiplies_by_a_tenth_to_almost_two(magnitude: int, expected: list[list[float]]) -> None:
    assert_equal(op(grey([[10, 100, 255]]), "Brightness", magnitude), expected)


def test_sharpness_by_hand() -> None:
    """The centre is 5 * 130 / 13 = 50 when smoothed; the border stays."""
    image = grey([[0, 0, 0], [0, 130, 0], [0, 0, 0]])
    for magnitude, centre in [(0, 58), (5, 130), (6, 144.4), (10, 202)]:  # 50 + 80 * (0.18 magnitude + 0.1)
        assert_equal(op(image, "Sharpness", magnitude), [[0, 0, 0], [0, centre, 0], [0, 0, 0]])
    assert_equal(op(grey([[9, 200]]), "Sharpness", 0), [[9, 200]])


@pytest.mark.parametrize("name", ["Brightness", "Sharpness"])
def test_at_the_published_magnitude_enhancements_change_nothing(name: RandAugmentOp) -> None:
    assert_equal(op(noise(4), name, 5), noise(4), atol=1e-4)


def test_auto_contrast_by_hand() -> None:
    image = torch.stack([torch.tensor([[50.0, 100, 150]]), torch.full((1, 3), 7.0), torch.tensor([[0.0, 255, 51]])])
    expected = torch.stack([torch.tensor([[0, 127.5, 255]]), torch.full((1, 3), 7.0), torch.tensor([[0.0, 255, 51]])])
    assert_equal(op(image[None], "AutoContrast", 3), expected[None])


def test_equalize_by_hand() -> None:
    """765 pixels in 4 levels: 255, 255, 127 and 128 of them; the step is (765 - 128) // 255 = 2, a half of it 1."""
    levels = [10] * 255 + [20] * 255 + [30] * 127 + [200] * 128
    expected = [0] * 255 + [128] * 255 + [255] * 127 + [255] * 128  # (1 + 255) // 2, (1 + 510) // 2, cut at 255
    assert_equal(op(grey([levels]), "Equalize", 3), [expected])
    uneven = [level + (0.4 if place % 2 else -0.4) for place, level in enumerate(levels)]
    assert_equal(op(grey([uneven]), "Equalize", 3), [expected])
    assert_equal(op(grey([[10, 20, 30]]), "Equalize", 3), [[10, 20, 30]])  # too few pixels for a step


SQUARE = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]


@pytest.mark.parametrize(
    ("name", "magnitude", "sign", "expected"),
    [
        # A tenth of the magnitude is a pixel; positive moves to the left or upwards.
        ("TranslateX", 1, 1, [[20, 30, 128], [50, 60, 128], [80, 90, 128]]),
        ("TranslateX", 2, -1, [[128, 128, 10], [128, 128, 40], [128, 128, 70]]),
        ("TranslateX", 5, 1, [[128] * 3] * 3),
        ("TranslateY", 1, 1, [[40, 50, 60], [70, 80, 90], [128] * 3]),
        ("TranslateY", 1, -1, [[128] * 3, [10, 20, 30], [40, 50, 60]]),
        # Row y moves to the right by 0.3 y: a pixel is 0.7 of itself and 0.3 of its left neighbour, then 0.4 and 0.6.
        ("ShearX", 10, 1, [[10, 20, 30], [66.4, 47, 57], [104.8, 74, 84]]),
        ("ShearX", 10, -1, [[10, 20, 30], [43, 53, 80.4], [76, 86, 112.8]]),
        ("ShearX", 5, 1, [[10, 20, 30], [53.2, 48.5, 58.5], [87.4, 77, 87]]),
        ("ShearY", 10, 1, [[10, 52.4, 88.8], [40, 41, 42], [70, 71, 72]]),
        ("ShearY", 10, -1, [[10, 29, 48], [40, 59, 78], [70, 94.4, 112.8]]),
        ("ShearX", 0, 1, SQUARE),
        ("TranslateY", 0, -1, SQUARE),
        ("Identity", 10, 1, SQUARE),
    ],
)
def test_geometry_by_hand(name: RandAugmentOp, magnitude: int, sign: int, expected: list[list[float]]) -> None:
    assert_equal(op(grey(SQUARE), name, magnitude, sign), expected)


def test_jitter_operations_by_hand() -> None:
    image = torch.tensor([[100.0, 0], [200, 0], [50, 255]]).view(1, 3, 1, 2)
    # Greys: 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 153, and 0.114 * 255 = 29.07; their mean is 91.035.
    half = torch.tensor([0.5])
    assert_equal(ours.brightness(image, half), image / 2)
    saturated = torch.tensor([[126.5, 14.535], [176.5, 14.535], [101.5, 142.035]]).view(1, 3, 1, 2)
    assert_equal(ours.saturation(image, half), saturated)
    contrasted = torch.tensor([[95.5175, 45.5175], [145.5175, 45.5175], [70.5175, 173.0175]]).view(1, 3, 1, 2)
    assert_equal(ours.contrast(image, half), contrasted)
    strong = torch.tensor([[47.0, 0], [247, 0], [0, 255]]).view(1, 3, 1, 2)  # -153 + 2 * (100, 200, 50), cut at 0
    assert_equal(ours.saturation(image, torch.tensor([2.0])), strong)


# --- operations, against others


@pytest.mark.parametrize("magnitude", [0, 3, 5, 10])
@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_every_operation_equals_the_slow_reference(name: RandAugmentOp, magnitude: int) -> None:
    images, signs = noise(3, 40, 23), torch.tensor([1.0, -1.0, 1.0])
    results = ours.apply_op(images, signs, name, magnitude)
    for image, sign, result in zip(images, signs.int().tolist(), results, strict=True):
        expected = reference.rand_augment_op(to_numpy(image), name, magnitude, sign)
        np.testing.assert_allclose(to_numpy(result), expected, atol=0.01)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9, 1.1, 1.9])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_colours_equal_pillow_torchvision_and_the_reference(name: str, enhance: type, factor: float) -> None:
    image = noise(1, 16, 20)
    result = getattr(ours, name)(image, torch.tensor([factor]))[0]
    np.testing.assert_allclose(to_numpy(result), getattr(reference, name)(to_numpy(image[0]), factor), atol=0.01)
    picture = Image.fromarray(to_numpy(image[0]).astype(np.uint8))
    # Pillow rounds the grey levels and cuts the blend: less than two levels at these factors.
    assert np.abs(to_numpy(result) - np.array(enhance(picture).enhance(factor))).max() < 2
    torchvision = getattr(tv, f"adjust_{name}")(image[0] / 255, factor) * 255
    assert (result - torchvision).abs().max() < 0.1  # its weights of grey have four digits


@pytest.mark.parametrize(("name", "pillow"), [("AutoContrast", ImageOps.autocontrast), ("Equalize", ImageOps.equalize)])
def test_histograms_equal_pillow(name: RandAugmentOp, pillow: object) -> None:
    image = 40 + noise(1, 64, 48) // 2
    expected = pillow(Image.fromarray(to_numpy(image[0]).astype(np.uint8)))  # type: ignore[operator]
    assert (
        np.abs(to_numpy(op(image, name, 5)[0]) - np.array(expected)).max() < 1.01
    )  # a table of Pillow is cut to bytes


@pytest.mark.parametrize("name", WARPS)
def test_warps_equal_pillow_inside(name: RandAugmentOp) -> None:
    """Pillow counts from the corner of a pixel, so shears of it lie half a pixel's shear beside those of BLIP."""
    image = noise(1, 32, 32)
    picture = Image.fromarray(to_numpy(image[0]).astype(np.uint8))
    half = 0.3 / 2
    data = {
        "ShearX": (1, -0.3, half, 0, 1, 0),
        "ShearY": (1, 0, 0, -0.3, 1, half),
        "TranslateX": (1, 0, 10, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, 10),
    }[name]
    expected = np.array(picture.transform((32, 32), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))
    inside = (slice(11, 21), slice(11, 21))
    assert np.abs(to_numpy(op(image, name, 10)[0]) - expected)[inside].max() < 1.01


# --- draws


def outcomes(image: Tensor, config: RandAugmentConfig) -> dict[tuple[str, ...], np.ndarray]:
    """Every image that two operations, each perhaps left out, can make of one."""
    steps = [("", 1), *((name, sign) for name in config.ops for sign in ((1, -1) if name in WARPS else (1,)))]

    def apply(picture: np.ndarray, step: tuple[str, int]) -> np.ndarray:
        name, sign = step
        return reference.rand_augment_op(picture, name, config.magnitude, sign) if name else picture

    once = {step: apply(to_numpy(image), step) for step in steps}
    return {(*a, *b): apply(once[a], b) for a, b in product(steps, steps)}


def test_every_view_is_two_operations_of_the_list_one_after_the_other() -> None:
    config = RandAugmentConfig(num_ops=2, magnitude=3, ops=["Brightness", "Sharpness", "ShearX", "TranslateY"])
    image = noise(1, 8, 8)
    views = ours.rand_augment(image.expand(400, -1, -1, -1), config, seeded(4))
    possible = outcomes(image[0], config)
    seen: Counter[tuple[str, ...]] = Counter()
    for view in views:
        distance = {steps: np.abs(to_numpy(view) - expected).max() for steps, expected in possible.items()}
        steps = min(distance, key=distance.__getitem__)
        assert distance[steps] < 0.01
        seen[steps] += 1
    # Of 800 draws a half is applied, shared by four operations; with a quarter's probability neither of a view is.
    assert 70 < seen["", 1, "", 1] < 130
    applied = Counter((steps[place], steps[place + 1]) for steps in seen.elements() for place in (0, 2))
    for name in config.ops:
        assert 70 < applied[name, 1] + applied[name, -1] < 130
    for name in ("ShearX", "TranslateY"):
        assert 30 < applied[name, 1] < 70
    assert any(steps[0] == steps[2] != "" for steps in seen)  # with replacement


def test_the_probability_is_per_operation() -> None:
    images = noise(64, 6, 6)
    shift = {"num_ops": 1, "magnitude": 1, "ops": ["TranslateX"]}
    never = ours.rand_augment(images, RandAugmentConfig(**shift, probability=0.0), seeded(0))
    always = ours.rand_augment(images, RandAugmentConfig(**shift, probability=1.0), seeded(0))
    assert torch.equal(never, images)
    assert not (always == images).flatten(1).all(1).any()
    left = (always[..., :-1] - images[..., 1:]).abs().flatten(1).amax(1) < 0.01
    right = (always[..., 1:] - images[..., :-1]).abs().flatten(1).amax(1) < 0.01
    assert torch.equal(left, ~right)
    assert 16 < left.sum() < 48
    kept = noise(64, 6, 6)
    assert torch.equal(images, kept)  # the argument is not changed


def test_sharpen_is_drawn_per_image() -> None:
    images = noise(40, 6, 6)
    views = ours.sharpen(images, SharpnessConfig(factor=0.1, probability=0.5), seeded(0))
    sharp = np.stack([reference.sharpness(to_numpy(image), 0.1) for image in images])
    changed = 0
    for view, image, expected in zip(views, images, sharp, strict=True):
        untouched = torch.equal(view, image)
        assert untouched or np.abs(to_numpy(view) - expected).max() < 0.01
        changed += not untouched
    assert 10 < changed < 30


def test_jitter_draws_factors_in_their_ranges() -> None:
    config = JitterConfig(brightness=0.2, contrast=0.4)
    images = (60 + noise(1, 6, 6) / 3).expand(200, -1, -1, -1)
    views = ours.jitter(images, config, seeded(0))
    bright, contrasted = [], []
    image, mean = images[0], float(reference.grey(to_numpy(images[0])).mean())
    x, y = image[0, 0, 0].item(), image[0, 3, 3].item()
    for view in views:
        # Either b * (c * x + (1 - c) * mean), or c * b * x + (1 - c) * b * mean: the same, clipping aside.
        slope = (view[0, 0, 0] - view[0, 3, 3]).item() / (x - y)  # b * c
        offset = view[0, 0, 0].item() - slope * x  # b * (1 - c) * mean
        b = slope + offset / mean
        bright.append(b)
        contrasted.append(slope / b)
        expected = reference.contrast(reference.brightness(to_numpy(image), b), slope / b)
        np.testing.assert_allclose(to_numpy(view), expected, atol=0.05)
    for drawn, width in ((bright, 0.2), (contrasted, 0.4)):
        assert 1 - width - 1e-3 <= min(drawn) < 1 - 0.9 * width
        assert 1 + width + 1e-3 >= max(drawn) > 1 + 0.9 * width
        assert abs(float(np.mean(drawn)) - 1) < 0.2 * width
    assert abs(float(np.corrcoef(bright, contrasted)[0, 1])) < 0.2


def test_jitter_takes_its_operations_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "brightness", lambda images, factor: images + 1)
    monkeypatch.setattr(ours, "contrast", lambda images, factor: images * 2)
    monkeypatch.setattr(ours, "saturation", lambda images, factor: images**2)
    config = JitterConfig(brightness=0.1, contrast=0.1, saturation=0.1)
    results = Counter(ours.jitter(torch.full((600, 3, 1, 1), 3.0), config, seeded(0))[:, 0, 0, 0].tolist())
    assert results.keys() == {64, 32, 49, 37, 20, 19}
    assert min(results.values()) > 60


def test_a_jitter_of_nothing_changes_nothing() -> None:
    images = noise(3)
    assert torch.equal(ours.jitter(images, JitterConfig(), seeded(0)), images)


def test_what_is_erased_is_one_box_of_the_area_and_ratio_asked_for() -> None:
    config = EraseConfig(probability=0.5, scale=[0.05, 0.2], ratio=[0.5, 2.0])
    images = noise(200, 40, 40) + 1
    views = ours.erase(images, config, seeded(0))
    boxes = []
    for view, image in zip(views, images, strict=True):
        gone = (view == 0).all(0)
        if not gone.any():
            assert torch.equal(view, image)
            continue
        rows, columns = gone.any(1).nonzero()[:, 0], gone.any(0).nonzero()[:, 0]
        top, left, height, width = rows[0].item(), columns[0].item(), len(rows), len(columns)
        assert torch.equal(view, tv.erase(image, top, left, height, width, torch.zeros(1)))
        assert (height + 0.5) * (width + 0.5) >= 0.05 * 1600
        assert (height - 0.5) * (width - 0.5) <= 0.2 * 1600
        assert (height + 0.5) / (width - 0.5) >= 0.5
        assert (height - 0.5) / (width + 0.5) <= 2.0
        boxes.append((top, left, top + height, left + width, height / width))
    assert 70 < len(boxes) < 130
    top, left, bottom, right, ratio = np.array(boxes).T
    assert top.min() == left.min() == 0
    assert bottom.max() == right.max() == 40  # anywhere, up to every border
    assert 0.3 < (ratio > 1).mean() < 0.7  # ratios are drawn on a logarithmic scale
    assert (images > 0).all()


@pytest.mark.parametrize(("share", "ratio"), [(1.0, 1.0), (0.5, 2.0), (0.5, 0.5)])
def test_a_box_from_border_to_border_is_not_erased(share: float, ratio: float) -> None:
    images = noise(20, 8, 8) + 1
    config = EraseConfig(probability=1.0, scale=[share, share], ratio=[ratio, ratio])
    assert torch.equal(ours.erase(images, config, seeded(0)), images)


def test_the_generator_decides() -> None:
    images = noise(8)
    for draw, config in (
        (ours.rand_augment, RandAugmentConfig()),
        (ours.sharpen, SharpnessConfig()),
        (ours.jitter, JitterConfig(brightness=0.5, saturation=0.5)),
        (ours.erase, EraseConfig(scale=[0.1, 0.3])),
    ):
        first, again, other = (draw(images, config, seeded(seed)) for seed in (1, 1, 2))  # type: ignore[operator]
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert draw(images[:0], config, seeded(1)).shape == (0, 3, 12, 10)  # type: ignore[operator]
