"""What the catalog says about a dataset: its versions, where it lies, and what of it goes to MLflow.

clip_a.metrics:
  type: pandas.CSVDataset
  versioned: true
  metadata:
    mlflow: {metrics: true}
"""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, AbstractVersionedDataset, CatalogProtocol
from pydantic import Field, ValidationError

from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.tracking.store import TrackingError


class Published(Frozen):
    """The keys of `metadata.mlflow` of a catalog entry."""

    metrics: bool = Field(False, description="log its numbers as metrics when it is saved")
    artifact: str | None = Field(None, min_length=1, description="copy its files into this artifact folder of the run")
    path: bool = Field(False, description="tag `<dataset>_path`, for what is too large to copy")
    fingerprint: bool = Field(False, description="digest of its content as a tag, and as an MLflow input where loaded")


def published(catalog: CatalogProtocol, name: str) -> Published:
    """What of a dataset goes to MLflow.

    Raises:
        TrackingError: Naming the entry and the key that is unknown or of the wrong type.
    """
    metadata = getattr(_entry(catalog, name), "metadata", None) or {}
    try:
        return Published.model_validate(metadata.get("mlflow") or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("metadata", "mlflow", *first["loc"]))
        raise TrackingError(
            f"catalog entry '{name}', key '{key}': {first['msg']}. The keys are: {', '.join(Published.model_fields)}."
        ) from None


def saved_version(catalog: CatalogProtocol, name: str) -> str | None:
    """The version that this session saves; none for what is not versioned."""
    entry = _entry(catalog, name)
    return entry.resolve_save_version() if isinstance(entry, AbstractVersionedDataset) else None


def loaded_version(catalog: CatalogProtocol, name: str) -> str | None:
    """The version that was loaded; none for what is not versioned."""
    entry = _entry(catalog, name)
    return entry.resolve_load_version() if isinstance(entry, AbstractVersionedDataset) else None


def location(catalog: CatalogProtocol, name: str, version: str | None) -> Path | None:
    """File or directory of a dataset's version on this machine; none where it is not a local file."""
    entry = _entry(catalog, name)
    path: Any = getattr(entry, "_filepath", None)
    if path is None or getattr(entry, "_protocol", "file") not in ("file", "local"):
        return None
    if version is not None and isinstance(entry, AbstractVersionedDataset):
        path = entry._get_versioned_path(version)
    return Path(path)


def _entry(catalog: CatalogProtocol, name: str) -> AbstractDataset | None:
    return catalog.get(name) if name in catalog else None
