"""A contact sheet: many small images on one, each over its caption, in any script that a font of this machine has."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CJK_FONTS = (
    *("NotoSansCJK", "NotoSansSC", "SourceHanSans", "PingFang", "msyh", "wqy-", "STHeiti", "simhei"),
    *("DroidSansFallback", "NotoSerifCJK", "uming", "ukai"),
)
"""Beginnings of the file names of fonts with Chinese and Latin letters, best first."""

FONT_FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)

_PAPER, _INK, _EMPTY = "white", "#202020", "#e8e8e8"
_GAP = 8  # pixels around images and captions
_LETTERS = 12  # height of the captions, in pixels


def contact_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6, cell: int = 160, lines: int = 3
) -> Image.Image:
    """Draw a sheet of images and their captions.

    Captions are wrapped at their own line breaks, between words, or between characters where a word (or a Chinese
    sentence) is too long, and end with an ellipsis where they do not fit. Letters that no font has are drawn as boxes
    or question marks.

    Args:
        images: Each uint8 [H, W, 3] or [H, W]; shown with its own aspect ratio.
        captions: One per image.
        columns: Images in a row.
        cell: Side of the square that an image is fitted into, in pixels.
        lines: Lines that a caption may have.

    Returns:
        An RGB image. Without images it is one empty cell.

    Raises:
        ValueError: There are not as many captions as images, or `columns`, `cell` or `lines` is below 1.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: each image needs one")
    if min(columns, cell, lines) < 1:
        raise ValueError(f"columns, cell and lines must be at least 1, not {columns}, {cell} and {lines}")
    font = _font(_LETTERS)
    line_height = _LETTERS * 4 // 3
    columns = max(1, min(columns, len(images)))
    step_x, step_y = cell + _GAP, cell + lines * line_height + 2 * _GAP
    rows = max(1, -(-len(images) // columns))
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + place % columns * step_x, _GAP + place // columns * step_y
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=_EMPTY)
        image = _fitted(Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB"), cell)
        sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
        wrapped = [line for part in caption.split("\n") for line in _wrapped(part, cell, lines, font)]
        for number, line in enumerate(wrapped[:lines]):
            draw.text((x, y + cell + _GAP // 2 + number * line_height), line, fill=_INK, font=font)
    return sheet


def find_cjk_font() -> Path | None:
    """A font file with Chinese letters, or none if this machine has none."""
    found = [file for folder in FONT_FOLDERS for file in _files_below(Path(folder).expanduser())]
    for beginning in CJK_FONTS:
        candidates = [file for file in found if file.name.lower().startswith(beginning.lower())]
        if candidates:
            # Upright and of normal weight, where a family has many files.
            return min(candidates, key=lambda file: ("regular" not in file.name.lower(), file.name))
    return None


@functools.cache
def _font(height: int) -> Font:
    file = find_cjk_font()
    if file is not None:
        try:
            return ImageFont.truetype(str(file), height)
        except (OSError, ImportError):  # a broken file, or a Pillow without FreeType
            pass
    return ImageFont.load_default(height)


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if name.lower().endswith((".ttf", ".ttc", ".otf")):
                yield Path(place, name)


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    longest = max(image.size)
    size = (max(1, image.width * cell // longest), max(1, image.height * cell // longest))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(caption: str, width: int, lines: int, font: Font) -> list[str]:
    """Cut a caption into lines that are no wider than `width` pixels."""
    rest = _printable(caption, font)
    more = "…" if isinstance(font, ImageFont.FreeTypeFont) else "..."
    wrapped: list[str] = []
    while rest and len(wrapped) < lines:
        last = len(wrapped) == lines - 1
        end = _fitting(rest, width, font)
        if end == len(rest):
            wrapped.append(rest)
            break
        if last:
            while end > 0 and font.getlength(rest[:end].rstrip() + more) > width:
                end -= 1
            wrapped.append(rest[:end].rstrip() + more)
            break
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        wrapped.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return wrapped


def _fitting(text: str, width: int, font: Font) -> int:
    """How many characters from the beginning fit; at least one, so that wrapping ends."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _printable(caption: str, font: Font) -> str:
    """One line without control characters, and with only what the font's encoding can hold."""
    text = " ".join(caption.split())
    text = "".join(letter if unicodedata.category(letter) not in ("Cc", "Cs") else "?" for letter in text)
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
