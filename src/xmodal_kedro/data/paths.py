"""An image path from a table is found under the root or refused with a reason; it never leads out of the root.

Folders are listed once each, so that a hundred thousand rows cost a few listings and no `stat` per row.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TRIED_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
SHARD_PATH = re.compile(r"(?P<shard>.+?)::(?P<row>\d+)::(?P<column>.+)")
_DRIVE = re.compile(r"[A-Za-z]:")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class PathError(ValueError):
    """A path is refused; the message is the reason."""


class Found(NamedTuple):
    """Where an image lies (`path`, relative to the root, POSIX), or why it was refused (`reason`)."""

    path: str
    reason: str | None


class _Folder(NamedTuple):
    names: dict[str, bool]  # name -> whether it is a symlink
    reason: str | None  # why nothing in this folder may be used


def confine(value: str) -> str:
    r"""Normalise a relative path without looking at the disk.

    `\` separates as `/` does, `.` and inner `..` are resolved.

    Raises:
        PathError: The path is empty, absolute, has a drive letter, is a URL, holds NUL, or climbs out with `..`.
    """
    if "\0" in value:
        raise PathError("image path holds a NUL character")
    if _URL.match(value):
        raise PathError("image path is a URL: nothing is downloaded, give a path under data.root")
    path = value.replace("\\", "/")
    if path.startswith("/"):
        raise PathError("image path is absolute: give it relative to data.root or to 'images'")
    if _DRIVE.match(path):
        raise PathError("image path has a drive letter: give it relative to data.root or to 'images'")
    path = posixpath.normpath(path)
    if path == ".." or path.startswith("../"):
        raise PathError("image path leads out of its folder with '..'")
    if path == ".":
        raise PathError("image path is empty")
    return path


class ImageTree:
    """A root folder and what lies in it.

    Args:
        root: The folder that no path may leave; it may itself be a symlink.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._folders: dict[str, _Folder] = {}

    def find(self, value: str, folder: str = "") -> Found:
        """Find an image file.

        A name without an image suffix that does not exist as it stands is tried with `.jpg`, `.jpeg` and `.png`.

        Args:
            value: The path as it stands in the user's table.
            folder: What it is relative to, itself relative to the root.

        Returns:
            The path relative to the root, or the reason it was refused.
        """
        try:
            path = posixpath.join(folder, confine(value))
        except PathError as error:
            return Found(value, str(error))
        if SHARD_PATH.fullmatch(path):
            return Found(path, "image path looks like an address in a Parquet shard ('::'): rename the file")
        parent, name = posixpath.split(path)
        listing = self._list(parent)
        if listing.reason is not None:
            return Found(path, listing.reason)
        if name not in listing.names and not name.lower().endswith(IMAGE_SUFFIXES):
            name = next((name + suffix for suffix in TRIED_SUFFIXES if name + suffix in listing.names), name)
        if name not in listing.names:
            return Found(path, "image file does not exist under data.root")
        path = posixpath.join(parent, name)
        if listing.names[name]:
            return Found(path, self._follow(path))
        return Found(path, None)

    def find_folder(self, value: str) -> Found:
        """Find a folder of images given relative to the root (`.` is the root itself, found as an empty path)."""
        try:
            path = "" if posixpath.normpath(value) == "." else confine(value)
        except PathError as error:
            return Found(value, str(error))
        return Found(path, self._list(path).reason)

    def _list(self, folder: str) -> _Folder:
        if folder not in self._folders:
            self._folders[folder] = self._scan(folder)
        return self._folders[folder]

    def _scan(self, folder: str) -> _Folder:
        if folder:
            parent = self._list(posixpath.dirname(folder))
            if parent.reason is not None:
                return _Folder({}, parent.reason)
        place = os.path.join(self.root, folder)
        if not self._inside(place):
            return _Folder({}, "image lies behind a symlink that leaves data.root: set data.root to the real folder")
        try:
            with os.scandir(place) as entries:
                return _Folder({e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()}, None)
        except (FileNotFoundError, NotADirectoryError):
            return _Folder({}, "folder does not exist under data.root")
        except OSError as error:
            return _Folder({}, f"folder cannot be listed ({error.strerror})")

    def _follow(self, path: str) -> str | None:
        """Why a symlinked file is refused; none when it is a file inside the root."""
        place = os.path.join(self.root, path)
        if not self._inside(place):
            return "image is a symlink that leaves data.root: copy the file, or set data.root to the real folder"
        return None if os.path.isfile(place) else "image is a symlink to no file"

    def _inside(self, place: str) -> bool:
        real = os.path.realpath(place)
        return real == self._real or real.startswith(os.path.join(self._real, ""))
