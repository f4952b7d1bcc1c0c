"""Images become rows of one .npy file, decoded by several processes; those that cannot be decoded leave no hole.

The processes import no more than this module does, so that they start quickly.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from xmodal_kedro.data.image_bytes import iterate_image_bytes
from xmodal_kedro.data.letterbox import Fit, UndecodableImageError, render

_FEW = 64  # below this, starting processes takes longer than decoding
_RUN = 512  # images a task: a shard is opened again by each task, and tasks end at different times


def write_pixels(
    file: Path,
    paths: Sequence[str],
    root: Path,
    size: int,
    fit: Fit,
    mirror: bool,
    workers: int,
    progress: Callable[[int], object],
) -> dict[int, str]:
    """Decode images into a .npy file, in the order of their paths and without those that cannot be decoded.

    Args:
        file: Is written; uint8 [images that could be decoded, size, size, 3].
        paths: Paths of the pair table, of files or of rows in Parquet shards.
        root: What the paths are relative to.
        size: Side of the square, in pixels.
        fit: See `letterbox.render`.
        mirror: See `letterbox.render`.
        workers: Decoding processes; 0 takes one per core.
        progress: Called with the number of images that have been done since the last call.

    Returns:
        The reason of each image that could not be decoded, by its place in `paths`.

    Raises:
        RuntimeError: A decoding process was killed.
    """
    header = _header(len(paths), size)
    with file.open("wb") as blank:
        blank.write(header)
        blank.truncate(len(header) + len(paths) * _bytes_of_row(size))
    workers = workers or _cores()
    run = min(_RUN, max(1, -(-len(paths) // (8 * workers))))
    runs = [(file, len(header), start, paths[start : start + run]) for start in range(0, len(paths), run)]
    settings = (root, size, fit, mirror)
    bad: dict[int, str] = {}
    if workers == 1 or len(paths) < _FEW:
        for part in runs:
            bad |= _fill(*part, *settings)
            progress(len(part[-1]))
    else:
        with ProcessPoolExecutor(
            min(workers, len(runs)), multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent
        ) as pool:
            counts = {pool.submit(_fill, *part, *settings): len(part[-1]) for part in runs}
            try:
                for done in as_completed(counts):
                    bad |= done.result()
                    progress(counts[done])
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a process that decodes images was killed, perhaps for want of memory: lower images.workers"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
    _close_holes(file, len(header), [row for row in range(len(paths)) if row not in bad], size)
    return bad


def _fill(
    file: Path, offset: int, start: int, paths: Sequence[str], root: Path, size: int, fit: Fit, mirror: bool
) -> dict[int, str]:
    """Decode a run of images into their rows; returns the reason by row of those that cannot be decoded."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(paths, start):
        rows[path].append(row)
    bad: dict[int, str] = {}
    with file.open("r+b", buffering=0) as pixels:
        for path, data in iterate_image_bytes(root, rows):
            try:
                if isinstance(data, OSError):
                    raise data
                image = render(data, size, fit, mirror=mirror).tobytes()
            except UndecodableImageError as error:
                bad |= dict.fromkeys(rows[path], str(error))
            except OSError as error:
                what = error.strerror or str(error).removeprefix(f"{path}: ")
                bad |= dict.fromkeys(rows[path], f"image cannot be read: {what}")
            else:
                for row in rows[path]:
                    pixels.seek(offset + row * len(image))
                    pixels.write(image)
    return bad


def _close_holes(file: Path, offset: int, good: list[int], size: int) -> None:
    """Move the good rows together, cut the file and correct its header."""
    length = _bytes_of_row(size)
    header = _header(len(good), size)
    # NumPy leaves room for the first axis to change its digits; without that, rows would have to move.
    assert len(header) == offset
    with file.open("r+b") as pixels:
        for place, row in enumerate(good):
            if place != row:
                pixels.seek(offset + row * length)
                image = pixels.read(length)
                pixels.seek(offset + place * length)
                pixels.write(image)
        pixels.truncate(offset + len(good) * length)
        pixels.seek(0)
        pixels.write(header)


def _header(count: int, size: int) -> bytes:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def _bytes_of_row(size: int) -> int:
    return size * size * 3


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
