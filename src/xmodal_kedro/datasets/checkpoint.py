"""A member's checkpoint in the catalog: loads to its directory, previews as a table of its tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from kedro_datasets._typing import TablePreview

from xmodal_kedro.datasets.directory import SealedDirectoryDataset


class CheckpointDataset(SealedDirectoryDataset[Path]):
    """Loads to the path, so that a node decides on which device the weights go (`read_checkpoint`)."""

    kind = "checkpoint"

    def open_directory(self, directory: Path) -> Path:
        """The directory itself."""
        return directory

    def preview(self, nrows: int = 200) -> TablePreview:
        """Name, type and shape of the first `nrows` tensors, read from the headers of the weight files alone."""
        rows = []
        for file in sorted(Path(self._get_load_path()).glob("*.safetensors")):
            for name, tensor in _header(file).items():
                if name != "__metadata__":
                    rows.append([name, tensor["dtype"], " x ".join(map(str, tensor["shape"])) or "scalar"])
        columns = ["tensor", "type", "shape"]
        return TablePreview({"index": list(range(len(rows[:nrows]))), "columns": columns, "data": rows[:nrows]})


class CaptionerDataset(CheckpointDataset):
    """A captioner's checkpoint, which a member's cannot stand in for."""

    kind = "captioner"


def _header(file: Path) -> dict[str, dict[str, list[int] | str]]:
    """The JSON header of a safetensors file: 8 bytes of length, then the header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, dict[str, list[int] | str]] = json.loads(stream.read(length))
        return header
