"""A store holds exactly what was decoded, in order, whatever the number of processes, and is packed only once."""

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.data import pixel_file
from xmodal_kedro.data.image_store import ImageStore, pack, pack_or_reuse, source_fingerprint, transform_fingerprint
from xmodal_kedro.data.letterbox import decode, letterbox, squash
from xmodal_kedro.data.manifest import BrokenArtifactError

SMALL = ImagesConfig(size=16, workers=1)
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "traffic" / "val.parquet"


def png(seed: int) -> bytes:
    chance = np.random.default_rng(seed)
    file = io.BytesIO()
    pixels = chance.integers(0, 256, (*chance.integers(5, 40, 2), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, list[tuple[str, str]]]:
    """90 images in files and in two shards, mixed, some used twice and some bad in every way."""
    root = tmp_path / "raw"
    (root / "pictures").mkdir(parents=True)
    items = []
    for number in range(60):
        (root / f"pictures/{number}.png").write_bytes(png(number))
        items.append((f"file {number}", f"pictures/{number}.png"))
    for shard in ("a.parquet", "b.parquet"):
        cells = [png(100 + row) for row in range(15)]
        cells[3] = b"<html>" if shard == "a.parquet" else cells[3]
        pq.write_table(pa.table({"jpg": cells}), root / shard, row_group_size=4)
        items += [(f"{shard} {row}", f"{shard}::{row}::jpg") for row in range(15)]
    (root / "pictures/7.png").write_bytes(b"")
    (root / "pictures/59.png").write_bytes(png(59)[:-40])
    (root / "pictures/0.png").unlink()
    items += [("again", "pictures/1.png"), ("no row", "b.parquet::99::jpg"), ("outside", "../secret.png")]
    order = np.random.default_rng(0).permutation(len(items))
    return root, [items[place] for place in order]


BAD = {"file 0", "file 7", "file 59", "a.parquet 3", "no row", "outside"}


def slow_pixels(root: Path, path: str, size: int, fit: str) -> np.ndarray:
    shard, *cell = path.split("::")
    data = pq.read_table(root / shard).column(cell[1])[int(cell[0])].as_py() if cell else (root / path).read_bytes()
    return (letterbox if fit == "letterbox" else squash)(decode(data), size)


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_rows_are_the_good_images_in_order(photos, tmp_path, fit):
    root, items = photos
    config = ImagesConfig(size=16, fit=fit, workers=1)
    store, quarantine = pack(items, root, tmp_path / "store", config)
    good = [(image_id, path) for image_id, path in items if image_id not in BAD]
    assert list(store.ids) == [image_id for image_id, _ in good]
    assert len(store) == len(good) == len(store.pixels)
    assert store.pixels.dtype == np.uint8
    for row, (_, path) in enumerate(good):
        assert (store.pixels[row] == slow_pixels(root, path, 16, fit)).all()
    assert sorted(quarantine["key"]) == sorted(path for image_id, path in items if image_id in BAD)


def test_the_quarantine_names_source_row_and_reason(photos, tmp_path):
    root, items = photos
    _, quarantine = pack(items, root, tmp_path / "store", SMALL)
    assert list(quarantine.columns) == ["kind", "source", "row", "key", "reason"]
    assert set(quarantine["kind"]) == {"image"}
    by_key = quarantine.set_index("key")
    assert by_key.loc["pictures/7.png", "reason"] == "image is empty (0 bytes)"
    assert by_key.loc["pictures/59.png", "reason"] == "image is cut short or damaged"
    assert "No such file" in by_key.loc["pictures/0.png", "reason"]
    assert "'..'" in by_key.loc["../secret.png", "reason"]
    html = by_key.loc["a.parquet::3::jpg"]
    assert (html["source"], html["row"]) == ("a.parquet", 4)
    assert "HTML" in html["reason"]
    assert "does not exist" in by_key.loc["b.parquet::99::jpg", "reason"]
    assert pd.isna(by_key.loc["pictures/7.png", "row"])


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_processes_change_no_byte(photos, tmp_path):
    root, items = photos
    counts: list[int] = []
    alone, _ = pack(items, root, tmp_path / "alone", ImagesConfig(size=16, workers=1))
    shared, _ = pack(items, root, tmp_path / "shared", ImagesConfig(size=16, workers=2), counts.append)
    assert files_of(alone.directory) == files_of(shared.directory)
    assert sum(counts) == len(items)
    assert len(counts) > 1
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "alone", "shared"}


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/traffic is not there")
def test_real_photos_are_the_same_with_one_and_two_processes(tmp_path):
    items = [(f"photo {row}", f"val.parquet::{row}::bytes") for row in range(0, 1400, 7)]
    stores = [
        pack(items, REAL.parent, tmp_path / str(workers), ImagesConfig(size=96, workers=workers)) for workers in (1, 2)
    ]
    assert files_of(stores[0][0].directory) == files_of(stores[1][0].directory)
    store, quarantine = stores[0]
    assert store.pixels.shape == (200, 96, 96, 3)
    assert quarantine.empty
    for row in range(0, 200, 40):
        assert (
            np.abs(store.pixels[row].astype(int) - slow_pixels(REAL.parent, items[row][1], 96, "letterbox")).max() < 8
        )


def test_rows_finds_ids_in_any_order_and_names_the_first_unknown(photos, tmp_path):
    root, items = photos
    store, _ = pack(items[:40], root, tmp_path / "store", SMALL)
    wanted = [store.ids[5], store.ids[0], store.ids[5]]
    rows = store.rows(wanted)
    assert rows.tolist() == [5, 0, 5]
    assert rows.dtype == np.int64
    assert store.rows([]).shape == (0,)
    with pytest.raises(KeyError, match=r"2 of 3 images are not in .*the first is 'nobody'"):
        store.rows([store.ids[0], "nobody", "no one"])


def test_nothing_and_nothing_good_are_stores_too(tmp_path):
    empty, quarantine = pack([], tmp_path, tmp_path / "empty", SMALL)
    assert empty.pixels.shape == (0, 16, 16, 3)
    assert len(empty.ids) == len(quarantine) == 0
    assert empty.rows([]).dtype == np.int64
    bad, quarantine = pack([("a", "a.jpg"), ("b", "b.jpg")], tmp_path, tmp_path / "bad", SMALL)
    assert bad.pixels.shape == (0, 16, 16, 3)
    assert list(quarantine["key"]) == ["a.jpg", "b.jpg"]
    with pytest.raises(KeyError):
        bad.rows(["a"])


def test_two_images_with_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the id 'x'"):
        pack([("x", "a.png"), ("y", "b.png"), ("x", "c.png")], tmp_path, tmp_path / "store", SMALL)


def test_a_store_is_used_again_until_a_file_or_a_setting_changes(photos, tmp_path):
    root, items = photos
    folder = tmp_path / "stores"

    def never(count: int) -> None:
        raise AssertionError("packed again")

    first, first_quarantine = pack_or_reuse(items, root, folder, SMALL)
    again, quarantine = pack_or_reuse(items, root, folder, ImagesConfig(size=16, workers=2), never)
    assert again.directory == first.directory
    assert again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(quarantine, first_quarantine)

    (root / "pictures/1.png").write_bytes(png(999))
    changed, _ = pack_or_reuse(items, root, folder, SMALL)
    assert changed.directory != first.directory
    assert changed.fingerprint != first.fingerprint
    assert changed.transform == first.transform
    squashed, _ = pack_or_reuse(items, root, folder, ImagesConfig(size=16, fit="squash", workers=1))
    assert squashed.transform != first.transform
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mirrored_store_is_the_flipped_one_and_neither_is_used_for_the_other(photos, tmp_path, fit, workers):
    root, items = photos
    folder = tmp_path / "stores"
    plain, _ = pack_or_reuse(items, root, folder, ImagesConfig(size=17, fit=fit, workers=1))
    mirrored, quarantine = pack_or_reuse(
        items, root, folder, ImagesConfig(size=17, fit=fit, mirror=True, workers=workers)
    )
    assert (mirrored.pixels == plain.pixels[:, :, ::-1]).all()
    assert not (mirrored.pixels == plain.pixels).all()
    assert list(mirrored.ids) == list(plain.ids)
    assert len(quarantine) == len(BAD)
    assert mirrored.directory != plain.directory
    assert mirrored.transform != plain.transform
    assert mirrored.fingerprint != plain.fingerprint
    again, _ = pack_or_reuse(items, root, folder, ImagesConfig(size=17, fit=fit, workers=1))
    assert again.directory == plain.directory


def test_a_store_that_was_cut_short_is_packed_again(photos, tmp_path):
    root, items = photos
    store, _ = pack_or_reuse(items, root, tmp_path / "stores", SMALL)
    whole = files_of(store.directory)
    with (store.directory / "pixels.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BrokenArtifactError, match=r"pixels\.npy"):
        ImageStore.open(store.directory)
    mended, _ = pack_or_reuse(items, root, tmp_path / "stores", SMALL)
    assert files_of(mended.directory) == whole


def test_a_changed_pixel_is_found_when_hashes_are_compared(photos, tmp_path):
    root, items = photos
    store, _ = pack(items, root, tmp_path / "store", SMALL)
    pixels = np.load(store.directory / "pixels.npy", mmap_mode="r+")
    pixels[-1, 3, 3, 0] ^= 1
    pixels.flush()
    ImageStore.open(store.directory)
    with pytest.raises(BrokenArtifactError, match="changed"):
        ImageStore.open(store.directory, hashes=True)


def test_fingerprints_tell_apart_what_differs(photos):
    root, items = photos
    print_of = source_fingerprint(items, root, SMALL)
    assert source_fingerprint(list(items), root, ImagesConfig(size=16, workers=7)) == print_of
    assert source_fingerprint(items[::-1], root, SMALL) != print_of
    assert source_fingerprint([("renamed", items[0][1]), *items[1:]], root, SMALL) != print_of
    os.utime(root / "b.parquet", ns=(1, 1))
    assert source_fingerprint(items, root, SMALL) != print_of
    assert transform_fingerprint(SMALL) != transform_fingerprint(ImagesConfig(size=17))


def test_a_run_that_is_broken_off_leaves_nothing(photos, tmp_path):
    root, items = photos

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            pack(items, root, tmp_path / "store", ImagesConfig(size=16, workers=workers), interrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_older_store_is_replaced_and_another_folder_is_not(photos, tmp_path):
    root, items = photos
    pack(items, root, tmp_path / "store", SMALL)
    store, _ = pack(items[:30], root, tmp_path / "store", SMALL)
    assert len(store) < 31
    with pytest.raises(FileExistsError, match=r"holds 'a\.parquet'"):
        pack(items, root, root, SMALL)
    assert (root / "a.parquet").exists()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_file, "_RUN", 8)
    (tmp_path / "one.png").write_bytes(png(1))
    items = [(str(number), "one.png" if number % 5 else "none.png") for number in range(400)]
    tracemalloc.start()
    store, _ = pack(items, tmp_path, tmp_path / "store", ImagesConfig(size=160, workers=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.pixels.nbytes > 24_000_000
    assert peak < store.pixels.nbytes / 2


def test_decoding_processes_start_without_heavy_imports():
    code = "import sys, xmodal_kedro.data.pixel_file; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert "numpy" in modules
    assert not {"torch", "pandas", "pydantic", "kedro", "mlflow"} & set(modules)
