"""Encoded bytes become square uint8 pixels: the same bytes give the same array in every process, or one clear error.

Every image of the project goes through `render`, in training and in the applications, so that no model meets an image
prepared another way. Nothing here touches Pillow's global settings.
"""

import io
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

Fit = Literal["letterbox", "squash"]

MAX_PIXELS = 178_956_970
"""Larger images are refused from their header alone (512 MiB of RGB; Pillow's own hard limit, here also where a
library has switched that off)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Photo formats. Pillow knows more, some of which start other programs (EPS) or have no size in their header."""

EMPTY = "image is empty (0 bytes)"
HTML = "image is HTML or XML (an error page that a download saved?)"
UNKNOWN = f"image is in no known format ({', '.join(FORMATS)})"
TOO_LARGE = f"image claims more than {MAX_PIXELS:,} pixels: scale it down first"
DAMAGED = "image is cut short or damaged"
NO_WHITE = "image has floats or 32-bit integers as pixels, and what is white is not defined: save it with 8 or 16 bits"

_DETAIL = 2
"""How many times the needed size a scaled JPEG decode keeps at least. A twofold margin stays within 4 grey levels of a
full decode (50 dB) at nearly the speed of none (35 dB, visibly softer)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112

# What Pillow's parsers raise on damaged bytes. OSError is the documented one; the others escape from single parsers
# (warnings where the caller made them errors).
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,
)


class UndecodableImageError(ValueError):
    """The bytes are no image that can be trained on.

    The message is the reason for the quarantine table, the same for every image with that fault; what the decoder said
    is the cause of the error.
    """


def render(data: bytes, size: int, fit: Fit = "letterbox", *, mirror: bool = False) -> np.ndarray:
    """Decode an image and fit it into a square.

    Args:
        data: The encoded image.
        size: Side of the square, in pixels.
        fit: `letterbox` keeps the aspect ratio, `squash` does not.
        mirror: Flip the finished square horizontally, borders included.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        UndecodableImageError: With the reason.
    """
    image, full_size = _decode(data, size, fit)
    pixels = _padded(image, _inner_size(full_size, size), size) if fit == "letterbox" else squash(image, size)
    return pixels[:, ::-1] if mirror else pixels


def letterbox(image: Image.Image, size: int) -> np.ndarray:
    """Scale the longest side to the size, up or down, and pad the other one with zeros, centred.

    The shorter side is cut to a whole pixel, not rounded (at least one is kept), and the odd pixel of padding goes to
    the bottom or right, as in the first place of CVPR 2023 challenge track 2. The sides are computed in integers: the
    float product of the original loses the last pixel of the longest side for some widths.

    Args:
        image: Any mode; see `to_rgb`.
        size: Side of the square, in pixels.

    Returns:
        uint8 [size, size, 3], RGB; bicubic with antialiasing.
    """
    return _padded(image, _inner_size(image.size, size), size)


def squash(image: Image.Image, size: int) -> np.ndarray:
    """Scale both sides to the size, whatever that does to the aspect ratio.

    Args:
        image: Any mode; see `to_rgb`.
        size: Side of the square, in pixels.

    Returns:
        uint8 [size, size, 3], RGB; bicubic with antialiasing.
    """
    return _resized(image, (size, size))


def decode(data: bytes, size_hint: int | None = None, fit: Fit = "letterbox") -> Image.Image:
    """Decode the first frame of an image, upright and in RGB.

    With a size hint, JPEGs are decoded at 1/2, 1/4 or 1/8 by their own transform, to the smallest of these that still
    has twice the pixels a side that `fit` needs. That is several times faster for camera-sized photos, deterministic,
    and differs from a full decode by a few grey levels. Without a hint, or in other formats, all pixels are decoded.

    Args:
        data: The encoded image, in one of `FORMATS`.
        size_hint: Side of the square that the image is made for, in pixels; none decodes all pixels.
        fit: How it will be fitted into that square.

    Returns:
        An RGB image.

    Raises:
        UndecodableImageError: Empty, no image (an error page for example), cut short, damaged, too large (seen in the
            header, before any decoding), or of a kind without a defined white (floats, 32-bit integers).
    """
    return _decode(data, size_hint, fit)[0]


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to RGB without clipping or uncovering what is hidden.

    16-bit greyscale is scaled by 1/257, transparency is laid over black (the colour of the letterbox border), CMYK and
    palettes are converted by Pillow.

    Raises:
        UndecodableImageError: For floats and 32-bit integers, which have no defined white.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise UndecodableImageError(NO_WHITE)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UndecodableImageError(NO_WHITE)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        over_black = Image.new("RGB", image.size)
        over_black.paste(opaque, mask=opaque.getchannel("A"))
        return over_black
    return image.convert("RGB")


def _decode(data: bytes, size_hint: int | None, fit: Fit) -> tuple[Image.Image, tuple[int, int]]:
    """Also returns the (width, height) of the upright image before any scaled decode, which rounds the sides up."""
    if not data:
        raise UndecodableImageError(EMPTY)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            full_size = image.size
            if full_size[0] * full_size[1] > MAX_PIXELS:
                raise UndecodableImageError(TOO_LARGE)
            if min(full_size) < 1:
                raise UndecodableImageError(DAMAGED)
            if size_hint is not None and image.format in ("JPEG", "MPO"):
                needed = _inner_size(full_size, size_hint) if fit == "letterbox" else (size_hint, size_hint)
                image.draft(None, (needed[0] * _DETAIL, needed[1] * _DETAIL))
            scaled = image.size != full_size
            image.load()
            orientation = _orientation(image)
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            if not scaled:
                full_size = upright.size
            elif orientation in _SIDES_SWAPPED:
                full_size = full_size[::-1]
            return to_rgb(upright), full_size
    except UndecodableImageError:
        raise
    except UnidentifiedImageError:
        raise UndecodableImageError(HTML if data.lstrip()[:1] == b"<" else UNKNOWN) from None
    except Image.DecompressionBombError as error:
        raise UndecodableImageError(TOO_LARGE) from error
    except _DAMAGE as error:
        raise UndecodableImageError(DAMAGED) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image; damaged EXIF beside sound pixels is ignored, as viewers do."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


def _padded(image: Image.Image, inner: tuple[int, int], size: int) -> np.ndarray:
    width, height = inner
    top, left = (size - height) // 2, (size - width) // 2
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[top : top + height, left : left + width] = _resized(image, inner)
    return pixels


def _inner_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    longest = max(size)
    return max(1, size[0] * side // longest), max(1, size[1] * side // longest)


def _resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    image = to_rgb(image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(image)
