"""A member's embeddings in the catalog: memory-mapped on load, with a preview of what made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_datasets._typing import TablePreview

from xmodal_kedro.datasets.directory import SealedDirectoryDataset

if TYPE_CHECKING:
    from xmodal_kedro.retrieval.embeddings import Embeddings


class EmbeddingsDataset(SealedDirectoryDataset["Embeddings"]):
    """Ids, matrix and fingerprints of one side of one member."""

    kind = "embeddings"

    def open_directory(self, directory: Path) -> Embeddings:
        """Memory-map the matrix."""
        from xmodal_kedro.retrieval.embeddings import Embeddings

        return Embeddings.open(directory)

    def preview(self) -> TablePreview:
        """What the embeddings are and what made them."""
        meta: dict[str, Any] = json.loads((Path(self._get_load_path()) / "meta.json").read_text())
        rows = [[key, value] for key, value in _flat(meta)]
        return TablePreview({"index": list(range(len(rows))), "columns": ["fact", "value"], "data": rows})


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, inner in value.items():
        rows += _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [(prefix + key, str(inner))]
    return rows
