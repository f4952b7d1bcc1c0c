"""Catalog datasets write whole things or nothing; a torn save is never the latest version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError, Version

from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.data.image_store import pack
from xmodal_kedro.data.manifest import BrokenArtifactError, seal
from xmodal_kedro.datasets.atomic import AtomicCSVDataset, AtomicJSONDataset, AtomicParquetDataset
from xmodal_kedro.datasets.checkpoint import CheckpointDataset
from xmodal_kedro.datasets.embeddings import EmbeddingsDataset
from xmodal_kedro.datasets.images import ImageStoreDataset
from xmodal_kedro.retrieval.embeddings import Embeddings

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
TABLE = pd.DataFrame({"text": ["白色奥迪", 'a "quoted", text'], "row": [1, 2]})


@pytest.mark.parametrize(
    ("dataset", "name", "data"),
    [
        (AtomicParquetDataset, "table.parquet", TABLE),
        (AtomicCSVDataset, "table.csv", TABLE),
        (AtomicJSONDataset, "facts.json", {"a": [1, 2]}),
    ],
)
def test_a_save_that_fails_leaves_the_old_version_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: type, name: str, data: object
) -> None:
    arguments = {"filepath": str(tmp_path / name), "save_args": {"index": False} if dataset is AtomicCSVDataset else {}}
    dataset(**arguments, version=Version(None, OLD)).save(data)

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fails)  # everything is written, nothing is safe yet
    with pytest.raises(DatasetError, match="disk is full"):
        dataset(**arguments, version=Version(None, NEW)).save(data)
    again = dataset(**arguments, version=Version(None, None))
    assert again.resolve_load_version() == OLD
    loaded = again.load()
    assert loaded.equals(data) if isinstance(data, pd.DataFrame) else loaded == data
    assert [path.name for path in (tmp_path / name / NEW).iterdir()] == []


def sealed_checkpoint(directory: Path, content: bytes = b"weights") -> Path:
    directory.mkdir()
    (directory / "weights.safetensors").write_bytes(content)
    seal(directory, "checkpoint", weights="w")
    return directory


def checkpoint_dataset(tmp_path: Path, load: str | None = None, save: str | None = None) -> CheckpointDataset:
    return CheckpointDataset(filepath=str(tmp_path / "checkpoint"), version=Version(load, save))


def test_a_sealed_directory_moves_into_its_version(tmp_path: Path) -> None:
    dataset = checkpoint_dataset(tmp_path, save=NEW)
    staged = sealed_checkpoint(tmp_path / "staged")
    dataset.save(staged)
    assert not staged.exists()
    assert (checkpoint_dataset(tmp_path).load() / "weights.safetensors").read_bytes() == b"weights"
    with pytest.raises(DatasetError, match="must not exist"):
        dataset.save(sealed_checkpoint(tmp_path / "staged again"))


def test_a_directory_without_manifest_is_no_version(tmp_path: Path) -> None:
    checkpoint_dataset(tmp_path, save=OLD).save(sealed_checkpoint(tmp_path / "staged"))
    torn = tmp_path / "checkpoint" / NEW / "checkpoint"
    torn.mkdir(parents=True)
    (torn / "weights.safetensors").write_bytes(b"half")
    assert checkpoint_dataset(tmp_path).resolve_load_version() == OLD
    assert checkpoint_dataset(tmp_path).list_versions(full_path=False) == [OLD]
    with pytest.raises(DatasetError, match=f"never finished; there are versions {OLD}"):
        checkpoint_dataset(tmp_path, load=NEW).load()


def test_what_is_not_sealed_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    with pytest.raises(DatasetError, match=r"MANIFEST\.json") as caught:
        checkpoint_dataset(tmp_path, save=NEW).save(tmp_path / "staged")
    assert isinstance(caught.value.__cause__, BrokenArtifactError)


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    checkpoint_dataset(tmp_path, save=OLD).save(sealed_checkpoint(tmp_path / "staged"))
    (tmp_path / "checkpoint" / OLD / "checkpoint" / "weights.safetensors").write_bytes(b"w")
    with pytest.raises(DatasetError, match="cut short"):
        checkpoint_dataset(tmp_path).load()


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    seal(tmp_path / "staged", "embeddings")
    with pytest.raises(DatasetError, match="holds embeddings, not checkpoint"):
        checkpoint_dataset(tmp_path, save=NEW).save(tmp_path / "staged")


def test_previews_of_embeddings_show_what_made_them(tmp_path: Path) -> None:
    matrix = np.eye(3, dtype=np.float32)
    meta = {"member": "small", "side": "image", "fingerprints": {"weights": "abc"}}
    Embeddings(["a", "b", "c"], matrix, meta).save(tmp_path / "staged")
    dataset = EmbeddingsDataset(filepath=str(tmp_path / "embeddings"), version=Version(None, NEW))
    dataset.save(tmp_path / "staged")
    loaded = dataset.load()
    assert np.array_equal(loaded.matrix, matrix)
    assert ["fingerprints.weights", "abc"] in dataset.preview()["data"]


def test_images_are_a_pointer_that_survives_a_move_and_knows_its_store(tmp_path: Path) -> None:
    from PIL import Image

    project = tmp_path / "project"
    project.mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 4), color).save(project / name)
    config = ImagesConfig(size=8, workers=1)
    store, _ = pack([("a", "a.png"), ("b", "b.png")], project, project / "stores" / "one", config)
    ImageStoreDataset(filepath=str(project / "images.json"), version=Version(None, NEW)).save(store)

    moved = project.rename(tmp_path / "elsewhere")
    dataset = ImageStoreDataset(filepath=str(moved / "images.json"), version=Version(None, None))
    loaded = dataset.load()
    assert list(loaded.ids) == ["a", "b"]
    assert loaded.fingerprint == store.fingerprint
    assert dataset.preview().startswith("iVBOR")  # PNG in base64

    pointer = next(moved.glob("images.json/*/images.json"))
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"fingerprint": "other"}))
    with pytest.raises(DatasetError, match="run data_processing again"):
        dataset.load()
