"""Pixels are bit-stable and right, strange images are read as they are meant, and damaged ones give one clear error."""

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests.reference import letterbox as reference
from xmodal_kedro.data.letterbox import UndecodableImageError, decode, letterbox, render, squash, to_rgb

GOLDEN = {
    "wide": "136e579b7179b62a",
    "tall": "c609ff52222347c0",
    "small": "0d22e9b3f900db61",
    "line": "785b4d744bfec52e",
    "squash": "dddcfa1eb22e74ec",
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image with noise, so that scaling has something to get wrong."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([y * 3 + x, y + x * 2, (y * x) // 7], axis=2) % 256
    return (waves * 3 // 4 + np.random.default_rng(seed).integers(0, 64, waves.shape)).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def goldens() -> dict[str, str]:
    arrays = {
        "wide": letterbox(Image.fromarray(picture(61, 200)), 64),
        "tall": letterbox(Image.fromarray(picture(333, 101)), 96),
        "small": letterbox(Image.fromarray(picture(9, 20)), 64),
        "line": letterbox(Image.fromarray(picture(1, 700)), 32),
        "squash": squash(Image.fromarray(picture(50, 120)), 48),
    }
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in arrays.items()}


def test_pixels_are_those_of_the_golden_digests():
    assert goldens() == GOLDEN


def test_another_process_makes_the_same_pixels():
    code = "from tests.data.test_letterbox import goldens; print(goldens())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert other.stdout.strip() == str(GOLDEN), other.stderr


@pytest.mark.parametrize(
    ("height", "width", "size"), [(20, 31, 16), (40, 7, 24), (5, 9, 24), (1, 30, 8), (16, 16, 16), (3, 3, 11)]
)
def test_letterbox_is_the_written_out_filter_to_a_grey_level(height, width, size):
    pixels = picture(height, width, seed=height)
    ours = letterbox(Image.fromarray(pixels), size).astype(float)
    truth = reference.letterbox(pixels, size)
    # Rounding alone is 0.25 on average; a level more at an edge is Pillow's fixed-point kernel.
    assert np.abs(ours - truth).max() < 1.5
    assert np.abs(ours - truth).mean() < 0.3
    assert ((ours == 0).all(2) == (truth == 0).all(2)).all()


@pytest.mark.parametrize("size", [32, 96, 224, 336])
def test_the_longest_side_always_fills_the_square(size):
    """The float formula of the original misses it, for example for some widths at 224."""
    for longest in range(1, 500, 7):
        for other in {1, longest // 3 or 1, longest}:
            pixels = letterbox(Image.new("RGB", (longest, other), "white"), size)
            lit = pixels.any(2)
            assert lit.any(0).all()
            rows = np.flatnonzero(lit.any(1))
            above, below = rows[0], size - 1 - rows[-1]
            assert below - above in (0, 1)
            assert len(rows) == max(1, other * size // longest)


def test_an_image_that_fits_is_not_touched():
    pixels = picture(64, 64)
    assert (letterbox(Image.fromarray(pixels), 64) == pixels).all()
    assert (squash(Image.fromarray(pixels), 64) == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(picture(40, 70)), format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        truth = np.asarray(ImageOps.exif_transpose(image))
    assert (np.asarray(decode(data)) == truth).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(("height", "width"), [(700, 1513), (1511, 333), (900, 900), (64, 1600)])
def test_scaled_decoding_of_a_jpeg_is_close_to_the_full_one_and_has_the_same_border(orientation, height, width):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(picture(height // 8 + 1, width // 8 + 1)).resize((width, height), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=92, exif=exif)
    assert max(decode(data, 96).size) < max(width, height) / 3
    fast, full = render(data, 96), letterbox(decode(data), 96)
    assert (fast.any(2) == full.any(2)).mean() > 0.999
    assert np.abs(fast.astype(int) - full).mean() < 2.0
    assert (fast == render(data, 96)).all()
    squashed = np.abs(render(data, 96, "squash").astype(int) - squash(decode(data), 96))
    assert squashed.mean() < 2.0


def test_the_hint_never_leaves_less_than_is_needed():
    data = encoded(Image.fromarray(picture(60, 2000)), "JPEG")
    assert decode(data, 128).size[0] >= 256
    assert decode(data, 128, "squash").size == (2000, 60)
    assert decode(data, 4000).size == (2000, 60)
    assert decode(data).size == (2000, 60)


def test_16_bit_greyscale_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(8, 32)
    pgm = b"P5 32 8 65535\n" + levels.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(levels), "PNG"), encoded(Image.fromarray(levels), "TIFF"), pgm):
        decoded = np.asarray(decode(data))
        assert (decoded == np.arange(256).reshape(8, 32, 1)).all()


def test_32_bit_pixels_are_refused_with_the_fix():
    floats = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    integers = Image.fromarray(np.full((3, 4), 1 << 20, np.int32))
    for image in (floats, integers):
        with pytest.raises(UndecodableImageError, match="8 or 16 bits"):
            decode(encoded(image, "TIFF"))


def test_cmyk_becomes_rgb():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.asarray(decode(encoded(cmyk, "JPEG", quality=100), 16)).reshape(-1, 3)
    assert red[:, 0].min() > 240
    assert red[:, 1:].max() < 15


def test_transparency_lies_over_black():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[...] = (200, 100, 50, 255)
    pixels[0, 0, 3] = 0
    pixels[0, 1, 3] = 128
    truth = np.array([[(0, 0, 0), (100, 50, 25)], [(200, 100, 50)] * 2])
    assert np.abs(np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"))) - truth).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    for format in ("PNG", "GIF"):
        assert np.asarray(decode(encoded(palette, format, transparency=0))).tolist() == [[[0, 0, 0], [0, 255, 0]]]
    grey = Image.fromarray(np.array([[9, 200]], np.uint8))
    assert np.asarray(decode(encoded(grey, "PNG", transparency=200))).tolist() == [[[9] * 3, [0] * 3]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "RGBa"])
def test_every_mode_becomes_rgb(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert image.mode == "RGB"
    assert image.size == (3, 2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_counts(format):
    frames = [Image.new("RGB", (24, 24), color) for color in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data)).mean((0, 1)).argmax() == 0


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("limit_of_pillow", ["as it is", "switched off"])
def test_a_header_bomb_is_refused_before_decoding(limit_of_pillow, monkeypatch):
    if limit_of_pillow == "switched off":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    for data in (png_header(60_000, 60_000), bytes(jpeg)):
        with pytest.raises(UndecodableImageError, match="claims more than"):
            decode(data, 224)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\n  <?xml version='1.0'?><svg/>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1", "no known format"),
        (b"P5 0 9 255\n", "no known format"),
        (png_header(0, 5), "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(UndecodableImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_file_that_was_cut_short_is_refused(format):
    data = encoded(Image.fromarray(picture(90, 120)), format)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(UndecodableImageError):
            render(data[: int(len(data) * share)], 32)


def test_damaged_exif_beside_sound_pixels_is_ignored():
    plain = encoded(Image.fromarray(picture(20, 30)), "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" + b"\xff" * 40
    damaged = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (np.asarray(decode(damaged)) == np.asarray(decode(plain))).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_random_damage_gives_pixels_or_the_one_error(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    options = {} if format == "GIF" else {"exif": exif}
    whole = encoded(Image.fromarray(picture(40, 56)), format, **options)
    chance = random.Random(format)
    reasons = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(chance.choice((1, 1, 3, 20))):
                # Headers are where parsers trip: half of the damage goes there.
                end = len(data) if chance.random() < 0.5 else min(len(data), 120)
                data[chance.randrange(end)] = chance.randrange(256)
            if chance.random() < 0.3:
                del data[chance.randrange(len(data)) :]
            try:
                pixels = render(bytes(data), 24, chance.choice(("letterbox", "squash")))
            except UndecodableImageError as error:
                reasons.add(str(error))
            else:
                assert pixels.shape == (24, 24, 3)
                assert pixels.dtype == np.uint8
    assert reasons
    assert all(reasons)


def test_pillow_settings_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    filters = list(warnings.filters)
    decode(encoded(Image.fromarray(picture(20, 30)), "JPEG"), 8)
    with pytest.raises(UndecodableImageError):
        decode(b"nothing")
    assert Image.MAX_IMAGE_PIXELS == 12_345
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert list(warnings.filters) == filters
