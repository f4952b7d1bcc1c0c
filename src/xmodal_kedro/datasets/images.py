"""The packed images in the catalog: a small versioned pointer to a store that is packed once and shared by versions."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kedro.io import DatasetError
from kedro_datasets._typing import ImagePreview

from xmodal_kedro.datasets.atomic import AtomicJSONDataset

if TYPE_CHECKING:
    from PIL.Image import Image

    from xmodal_kedro.data.image_store import ImageStore


class ImageStoreDataset(AtomicJSONDataset):
    """Saves where an `ImageStore` lies and its fingerprint; loads the store, memory-mapped, if it is still that one."""

    def save(self, data: ImageStore) -> None:
        """Write the pointer; the store itself was packed by the node."""
        # Relative to the pointer, so that a project folder can be moved.
        directory = os.path.relpath(data.directory, Path(self._get_save_path()).parent)
        super().save.__wrapped__(self, {"directory": directory, "fingerprint": data.fingerprint})

    def load(self) -> ImageStore:
        """Open the store.

        Raises:
            DatasetError: The store is gone or is another one than this version pointed at.
        """
        from xmodal_kedro.data.image_store import ImageStore

        file = Path(self._get_load_path())
        pointer = json.loads(file.read_text())
        directory = (file.parent / pointer["directory"]).resolve()
        if not directory.is_dir():
            raise DatasetError(f"{directory} is gone: run data_processing again to pack the images")
        store = ImageStore.open(directory)
        if store.fingerprint != pointer["fingerprint"]:
            raise DatasetError(
                f"{directory} holds images {store.fingerprint[:12]}, this version wants {pointer['fingerprint'][:12]}: "
                "run data_processing again, or load the version that belongs to it"
            )
        return store

    def preview(self, count: int = 24) -> ImagePreview:
        """A sheet of processed images, evenly taken from the whole store."""
        from xmodal_kedro.reporting.sheets import contact_sheet

        store = self.load.__wrapped__(self)
        rows = [i * len(store.ids) // count for i in range(count)] if len(store.ids) > count else range(len(store.ids))
        sheet = contact_sheet(
            [store.pixels[row] for row in rows], [PurePosixPath(store.ids[row]).name for row in rows], columns=8
        )
        return as_preview(sheet)


def as_preview(image: Image) -> ImagePreview:
    """An image as Kedro-Viz shows it."""
    png = io.BytesIO()
    image.save(png, format="PNG")
    return ImagePreview(base64.b64encode(png.getvalue()).decode())
