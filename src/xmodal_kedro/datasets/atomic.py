"""Table, JSON and figure datasets whose files are there in full or not at all.

Kedro takes the newest path of a versioned dataset for its latest version, so a save that was cut short would be loaded
next time. These write beside the final name, force the bytes to disk and rename.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from kedro_datasets.plotly import JSONDataset as FigureDataset


class AtomicSave:
    """Mixin before a kedro-datasets class with a `save` that asks `_get_save_path` where to write (local files)."""

    _unfinished: PurePosixPath | None = None

    def _get_save_path(self) -> PurePosixPath:
        return self._unfinished or super()._get_save_path()  # type: ignore[misc]

    def save(self, data: Any) -> None:
        """Write `data` beside its place, then rename."""
        final = Path(self._get_save_path())
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished = final.with_name(f".{final.name}.unfinished")
        self._unfinished = PurePosixPath(unfinished)
        try:
            # The parent's save without Kedro's wrapper, which is around this one already.
            super().save.__wrapped__(self, data)  # type: ignore[misc]
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(final)
        finally:
            self._unfinished = None
            unfinished.unlink(missing_ok=True)


class AtomicParquetDataset(AtomicSave, ParquetDataset):
    """A Parquet table."""


class AtomicCSVDataset(AtomicSave, CSVDataset):
    """A CSV table."""


class AtomicJSONDataset(AtomicSave, JSONDataset):
    """A JSON document."""


class AtomicFigureDataset(AtomicSave, FigureDataset):
    """A Plotly figure as JSON, drawn by Kedro-Viz."""
