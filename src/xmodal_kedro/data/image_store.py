"""Every image is decoded once, into rows of one memory-mapped array; what cannot be decoded is listed, without a hole.

A store is a directory with `pixels.npy` (uint8 [N, S, S, 3]), `ids.parquet` (column `image_id`, in the order of the
rows), `quarantine.parquet`, `meta.json` and a manifest. Rows keep the order of the input, and their bytes do not
depend on the number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.data.image_bytes import parse_shard_path
from xmodal_kedro.data.manifest import MANIFEST, BrokenArtifactError, fingerprint, read_manifest, seal, sha256_of
from xmodal_kedro.data.pixel_file import write_pixels
from xmodal_kedro.data.quarantine import Entry, build

KIND = "images"
PIXELS, IDS, QUARANTINE, META = "pixels.npy", "ids.parquet", "quarantine.parquet", "meta.json"

Items = Sequence[tuple[str, str]]
"""(image_id, path) of each image, as the pair table has them."""

_TRANSFORM_VERSION = 1
"""To be raised when `letterbox.py` makes other pixels of the same bytes."""


class ImageStore:
    """A packed store, opened.

    Attributes:
        directory: Where it lies.
        pixels: uint8 [N, S, S, 3], RGB, memory-mapped and read-only.
        ids: image_id of each row.
        size: S, the side in pixels.
        fingerprint: Of pixels and ids.
        transform: Fingerprint of how bytes became pixels.
        source: Fingerprint of the files and the settings that it was packed from.
    """

    def __init__(self, directory: Path, meta: dict[str, Any]) -> None:
        self.directory = directory
        self.pixels: np.ndarray = np.load(directory / PIXELS, mmap_mode="r", allow_pickle=False)
        self.ids = pd.Index(pd.read_parquet(directory / IDS)["image_id"])
        self.size: int = meta["size"]
        self.fingerprint: str = meta["fingerprint"]
        self.transform: str = meta["transform"]
        self.source: str = meta["source"]

    @classmethod
    def open(cls, directory: Path, *, hashes: bool = False) -> ImageStore:
        """Open a store.

        Args:
            directory: The store.
            hashes: Also compare the sha256 of every file, which reads all pixels once.

        Raises:
            BrokenArtifactError: It was never finished, is cut short, is no image store, or (`hashes`) was changed.
        """
        read_manifest(directory, KIND, hashes=hashes)
        return cls(directory, json.loads((directory / META).read_text()))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The quarantine table of the images that could not be packed."""
        return pd.read_parquet(self.directory / QUARANTINE)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Rows of images, int64, in the order of the ids asked for.

        Raises:
            KeyError: Naming the first id that is not in the store, and how many are not.
        """
        wanted = pd.Index(list(image_ids), dtype="str")
        rows = self.ids.get_indexer(wanted).astype(np.int64)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise KeyError(
                f"{len(unknown)} of {len(rows)} images are not in {self.directory}, the first is "
                f"'{wanted[unknown[0]]}': run data_processing again, or drop the quarantined images"
            )
        return rows


def transform_fingerprint(images: ImagesConfig) -> str:
    """Fingerprint of how bytes become pixels: the same where a model sees the same pixels of the same file."""
    settings = {"size": images.size, "fit": images.fit, "mirror": images.mirror}
    return fingerprint({"version": _TRANSFORM_VERSION, **settings})


def source_fingerprint(items: Items, root: Path, images: ImagesConfig) -> str:
    """Fingerprint of ids, paths, size and time of every file or shard, and of the settings that shape pixels."""
    files = {path: address.shard if (address := parse_shard_path(path)) else path for _, path in items}
    states = {file: _state(root / file) for file in files.values()}
    seen = [(image_id, path, states[files[path]]) for image_id, path in items]
    return fingerprint({"items": seen, "transform": transform_fingerprint(images)})


def pack_or_reuse(
    items: Items,
    root: Path,
    folder: Path,
    images: ImagesConfig,
    progress: Callable[[int], None] | None = None,
) -> tuple[ImageStore, pd.DataFrame]:
    """Open the store of the same files and settings in a folder of stores, or pack it there.

    Args:
        items: (image_id, path) of each image.
        root: What the paths are relative to.
        folder: Holds one store per source fingerprint.
        images: Size, fit and number of processes.
        progress: See `pack`; by default a progress bar where there is a terminal.

    Returns:
        The store, and the quarantine table of its images.

    Raises:
        ValueError: Two items have one id.
        RuntimeError: See `pack`.
    """
    source = source_fingerprint(items, root, images)
    directory = folder / source[:16]
    try:
        store = ImageStore.open(directory)
        if store.source == source:
            return store, store.quarantine
    except BrokenArtifactError:
        pass  # not packed yet, or damaged since
    if progress is not None:
        return pack(items, root, directory, images, progress)
    with tqdm(total=len(items), desc="Packing images", unit="image", disable=None) as bar:
        return pack(items, root, directory, images, bar.update)


def pack(
    items: Items,
    root: Path,
    out: Path,
    images: ImagesConfig,
    progress: Callable[[int], object] | None = None,
) -> tuple[ImageStore, pd.DataFrame]:
    """Decode, fit and pack images, each into its row; memory holds a few images per process.

    The store is built beside its place and renamed when it is whole; an older store in that place is replaced.

    Args:
        items: (image_id, path) of each image; the path of a file, or an address in a Parquet shard.
        root: What the paths are relative to.
        out: Directory of the store.
        images: Size, fit and number of processes.
        progress: Called with the number of images that have been done since the last call.

    Returns:
        The store with the images that could be decoded, in the order of the items, and the quarantine table of the
        others.

    Raises:
        ValueError: Two items have one id.
        FileExistsError: `out` holds something else than an image store.
        RuntimeError: A decoding process was killed.
    """
    ids = pd.Index([image_id for image_id, _ in items], dtype="str")
    if ids.has_duplicates:
        raise ValueError(f"two images have the id '{ids[ids.duplicated()][0]}': give each image an id of its own")
    _refuse_strangers(out)
    source = source_fingerprint(items, root, images)  # before decoding: a file that changes meanwhile is packed again
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        paths = [path for _, path in items]
        shape = (images.size, images.fit, images.mirror)
        bad = write_pixels(unfinished / PIXELS, paths, root, *shape, images.workers, progress or (lambda count: None))
        good = ids.delete(sorted(bad))
        pd.DataFrame({"image_id": good}).to_parquet(unfinished / IDS)
        build(_entry(paths[row], bad[row]) for row in sorted(bad)).to_parquet(unfinished / QUARANTINE)
        transform = transform_fingerprint(images)
        content = fingerprint({"ids": list(good), "pixels": sha256_of(unfinished / PIXELS)})
        prints = {"fingerprint": content, "transform": transform, "source": source}
        meta = {"n": len(good), "size": images.size, "fit": images.fit, "mirror": images.mirror, **prints}
        (unfinished / META).write_text(json.dumps(meta, indent=2))
        seal(unfinished, KIND, images=content, transform=transform, source=source)
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    store = ImageStore.open(out)
    return store, store.quarantine


def _entry(path: str, reason: str) -> Entry:
    address = parse_shard_path(path)
    if address is None:
        return Entry("image", path, None, path, reason)
    return Entry("image", address.shard, address.row + 1, path, reason)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        state = file.stat()
    except (OSError, ValueError):  # no such file, or NUL in its name: reading it will say so
        return None
    return state.st_size, state.st_mtime_ns


def _refuse_strangers(out: Path) -> None:
    """A configured folder may be mistyped: nothing is replaced that holds more than the files of a store."""
    strangers = (
        {file.name for file in out.iterdir()} - {PIXELS, IDS, QUARANTINE, META, MANIFEST} if out.exists() else ()
    )
    if strangers:
        raise FileExistsError(f"{out} is to be an image store but holds '{min(strangers)}': move it, or choose another")
