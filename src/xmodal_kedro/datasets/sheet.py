"""A drawn sheet of photos in the catalog: a PNG file that Kedro-Viz shows."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro_datasets._typing import ImagePreview
from PIL import Image

from xmodal_kedro.datasets.images import as_preview


class SheetDataset(AbstractVersionedDataset[Image.Image, Image.Image]):
    """Saves an image as PNG, there in full or not at all."""

    def __init__(
        self, *, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at `filepath`; with a version, at `filepath/<version>/<name>`."""
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def load(self) -> Image.Image:
        """Read the image."""
        with Image.open(Path(self._get_load_path())) as image:
            image.load()
            return image

    def save(self, data: Image.Image) -> None:
        """Write beside the final name, then rename."""
        final = Path(self._get_save_path())
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished = final.with_name(f".{final.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                data.save(file, format="PNG")
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(final)
        finally:
            unfinished.unlink(missing_ok=True)

    def preview(self) -> ImagePreview:
        """The sheet itself."""
        return as_preview(self.load.__wrapped__(self))

    def _exists(self) -> bool:
        return Path(self._get_load_path()).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}
