"""A sheet comes back pixel for pixel, is there in full or not at all, and is what Kedro-Viz shows."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from kedro.io import DatasetError, Version
from PIL import Image

from xmodal_kedro.datasets.sheet import SheetDataset

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def sheet(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 50, 3), dtype=np.uint8))


def dataset(folder: Path, load: str | None = None, save: str | None = None) -> SheetDataset:
    return SheetDataset(filepath=str(folder / "sheet.png"), version=Version(load, save))


def test_a_sheet_comes_back_pixel_for_pixel(tmp_path):
    for version, seed in ((OLD, 1), (NEW, 2)):
        dataset(tmp_path, save=version).save(sheet(seed))
    newest, first = dataset(tmp_path).load(), dataset(tmp_path, load=OLD).load()
    assert np.array_equal(newest, sheet(2))
    assert np.array_equal(first, sheet(1))
    assert (tmp_path / "sheet.png" / NEW / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_without_versions_the_file_is_replaced(tmp_path):
    one = SheetDataset(filepath=str(tmp_path / "deep" / "sheet.png"))
    assert not one.exists()
    for seed in (1, 2):
        one.save(sheet(seed))
    assert one.exists()
    assert np.array_equal(one.load(), sheet(2))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_save_that_fails_leaves_the_old_version_the_latest(tmp_path, monkeypatch, step):
    dataset(tmp_path, save=OLD).save(sheet(1))

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(step, fails)
    with pytest.raises(DatasetError, match="disk is full"):
        dataset(tmp_path, save=NEW).save(sheet(2))
    assert dataset(tmp_path).resolve_load_version() == OLD
    assert np.array_equal(dataset(tmp_path).load(), sheet(1))
    assert list((tmp_path / "sheet.png" / NEW).iterdir()) == []


def test_a_preview_is_the_sheet_as_kedro_viz_asks_for_it(tmp_path):
    dataset(tmp_path, save=NEW).save(sheet())
    preview = dataset(tmp_path).preview()
    shown = Image.open(io.BytesIO(base64.b64decode(preview)))
    assert shown.format == "PNG"
    assert np.array_equal(shown, sheet())
    assert SheetDataset.preview.__annotations__["return"] == "ImagePreview"  # by this Kedro-Viz knows what it gets


def test_a_sheet_that_was_never_drawn_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"sheet\.png"):
        dataset(tmp_path).load()
