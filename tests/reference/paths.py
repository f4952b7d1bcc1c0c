"""Finding an image the slow way: one realpath and one stat per row."""

from __future__ import annotations

import os
from pathlib import Path


def find(root: Path, value: str, folder: str) -> str | None:
    """Path relative to the root; none when it is refused."""
    value = value.replace("\\", "/")
    if not value or "\0" in value or "://" in value or value.startswith("/") or value[1:2] == ":":
        return None
    value = os.path.normpath(value)
    if value.startswith(".."):
        return None
    for suffix in ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"):
        place = root / folder / (value + suffix)
        if place.is_file():
            inside = Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root))
            return place.relative_to(root).as_posix() if inside else None
    return None
