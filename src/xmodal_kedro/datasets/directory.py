"""Versioned directories that are sealed by a manifest: without one, a directory is no version at all.

A node builds its result in a directory of `staging()` and returns the path; saving renames it into its version.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io import AbstractVersionedDataset, DatasetError, Version

from xmodal_kedro.config_loader import RecipeConfigLoader, project_path
from xmodal_kedro.data.manifest import MANIFEST, read_manifest

Loaded = TypeVar("Loaded")


def staging(name: str) -> Path:
    """A new empty directory for something half made, on the disk of the project's data.

    Directories that an interrupted run left behind are safe to delete.
    """
    parent = project_path() / "data" / ".staging"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def training_states() -> Path:
    """Where trainings of the active recipe keep what they go on from after an interruption."""
    loader = RecipeConfigLoader.active
    return project_path() / ("data" if loader is None else loader.data_folder) / ".training"


class SealedDirectoryDataset(AbstractVersionedDataset[Path, Loaded], Generic[Loaded]):
    """Base of the artifact datasets: saves a sealed directory by one rename, loads it after a look at its manifest.

    Subclasses name their `kind` and say what `open_directory` gives for a path.
    """

    kind: str

    def __init__(
        self, *, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Point at `filepath`; with a version, at `filepath/<version>/<name>`."""
        super().__init__(PurePosixPath(filepath), version, exists_function=_is_sealed)
        self.metadata = metadata

    def open_directory(self, directory: Path) -> Loaded:
        """What a sealed directory holds."""
        raise NotImplementedError

    def load(self) -> Loaded:
        """Open the directory of the version that is asked for.

        Raises:
            DatasetError: The version does not exist or was never finished.
        """
        directory = Path(self._get_load_path())
        if not _is_sealed(directory):
            raise DatasetError(f"{directory} does not exist or was never finished; there are {self._versions_there()}")
        read_manifest(directory, self.kind)
        return self.open_directory(directory)

    def save(self, data: Path) -> None:
        """Rename a sealed directory into place."""
        read_manifest(data, self.kind)
        final = Path(self._get_save_path())
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)  # either not sealed, hence nobody's, or an unversioned predecessor
        try:
            data.replace(final)
        except OSError:  # staging and data lie on different disks: copy beside, then rename
            beside = final.with_name(f".{final.name}.unfinished")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(data, beside)
            beside.replace(final)
            shutil.rmtree(data)
        descriptor = os.open(final.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def _exists(self) -> bool:
        try:
            return _is_sealed(self._get_load_path())
        except DatasetError:
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}

    def _versions_there(self) -> str:
        versions = self.list_versions(full_path=False) if self._version else []
        return "versions " + ", ".join(versions) if versions else "no versions"


def _is_sealed(path: Any) -> bool:
    return (Path(path) / MANIFEST).is_file()
