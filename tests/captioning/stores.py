"""Packed images that are made by hand: image i is all of value i."""

from pathlib import Path

import numpy as np
import pandas as pd

from xmodal_kedro.data.image_store import IDS, PIXELS, ImageStore

FINGERPRINTS = {"fingerprint": "f", "transform": "t", "source": "s"}


def store_of(directory: Path, image_ids: list[str], size: int = 2, pixels: np.ndarray | None = None) -> ImageStore:
    """An opened store."""
    if pixels is None:
        pixels = (
            np.ones((len(image_ids), size, size, 3), np.uint8)
            * np.arange(len(image_ids), dtype=np.uint8)[:, None, None, None]
        )
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / PIXELS, pixels)
    pd.DataFrame({"image_id": pd.Series(image_ids, dtype="str")}).to_parquet(directory / IDS)
    return ImageStore(directory, {"size": pixels.shape[1], **FINGERPRINTS})
