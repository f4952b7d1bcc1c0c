"""A root with a few photos, and sources that are written there and read as a user configures them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmodal_kedro.config.data import Columns, Source
from xmodal_kedro.data.readers import Read, read_source


def make_root(folder: Path) -> Path:
    """A root with photos, one of them a symlink that leads out of it."""
    root = folder / "root"
    (root / "photos" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.png", "deep/d.JPG", "000055.jpg", "1001.jpg", "1002.jpg"):
        (root / "photos" / name).write_bytes(name.encode())
    (folder / "x.jpg").touch()
    (root / "photos" / "link.jpg").symlink_to(folder / "x.jpg")
    return root


def read(root: Path, file: str | None, content: str | bytes | None = None, **source: Any) -> Read:
    """Write a file where there is content, and read it as a source with images in `photos`."""
    if content is not None:
        (root / str(file)).write_bytes(content.encode() if isinstance(content, str) else content)
    source = {"split": "train", "format": "table", "images": "photos"} | source
    columns = Columns(**source.pop("columns", {}))
    return read_source(root, Source(file=file, columns=columns, **source), [])


def reasons(found: Read) -> list[tuple[int, str]]:
    """Row and reason of what is in quarantine."""
    return list(zip(found.quarantine["row"], found.quarantine["reason"], strict=True))
