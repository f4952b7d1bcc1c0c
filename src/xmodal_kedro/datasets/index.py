"""A search index in the catalog: sealed, versioned, memory-mapped on load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xmodal_kedro.datasets.directory import SealedDirectoryDataset

if TYPE_CHECKING:
    from xmodal_kedro.retrieval.search import Index


class IndexDataset(SealedDirectoryDataset["Index"]):
    """An index of any kind; what it was made of is checked by `check_made_of` where it meets embeddings."""

    kind = "index"

    def open_directory(self, directory: Path) -> Index:
        """Memory-map the index."""
        from xmodal_kedro.retrieval.search import open_index

        return open_index(directory)
