"""Image bytes come from files and shards alike, streamed or in any order, and an error is handed over, not raised."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_kedro.data.image_bytes import (
    BATCH,
    ImageReader,
    image_bytes,
    iterate_image_bytes,
    parse_shard_path,
    shard_path,
)

ROWS = 2 * BATCH + 45  # uneven tails in batches and row groups


def content(row: int) -> bytes:
    return b"image %d" % row


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bytes")
    (root / "deep").mkdir()
    (root / "deep" / "a.jpg").write_bytes(b"a file")
    table = pa.table(
        {
            "bytes": pa.array([content(row) for row in range(ROWS)], pa.binary()),
            "image": [{"path": f"{row}.jpg", "bytes": content(row)} for row in range(ROWS)],
            "large": pa.array([content(row) if row != 7 else None for row in range(ROWS)], pa.large_binary()),
            "text": ["t"] * ROWS,
            "point": [{"x": 1}] * ROWS,
        }
    )
    pq.write_table(table, root / "deep" / "s.parquet", row_group_size=BATCH + 30)
    (root / "torn.parquet").write_bytes((root / "deep" / "s.parquet").read_bytes()[:-200])
    pq.write_table(table[:0], root / "empty.parquet")
    return root


@pytest.mark.parametrize("column", ["bytes", "image", "large"])
def test_streaming_and_random_access_agree_with_the_table(root: Path, column: str) -> None:
    rows = [0, 5, BATCH - 1, BATCH, BATCH + 29, BATCH + 30, ROWS - 1]
    paths = [shard_path("deep/s.parquet", row, column) for row in np.random.default_rng(0).permutation(rows)]
    streamed = dict(iterate_image_bytes(root, [*paths, "deep/a.jpg", paths[0]]))
    reader = ImageReader(root, cached=1)
    assert streamed.pop("deep/a.jpg") == b"a file"
    assert streamed == {path: reader.read(path) for path in paths}
    assert streamed == {shard_path("deep/s.parquet", row, column): content(row) for row in rows}


def test_every_row_once_in_order(root: Path) -> None:
    paths = [shard_path("deep/s.parquet", row, "image") for row in range(ROWS)]
    assert list(iterate_image_bytes(root, reversed(paths))) == [(p, content(r)) for r, p in enumerate(paths)]
    assert list(iterate_image_bytes(root, [])) == []


def test_a_row_group_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    whole, batches = pq.ParquetFile.read_row_group, pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: read.append(a[1]) or whole(*a, **k))
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: read.append(k["row_groups"][0]) or batches(*a, **k)
    )
    paths = [shard_path("deep/s.parquet", row, "bytes") for row in range(ROWS)]
    assert len(list(iterate_image_bytes(root, paths))) == ROWS
    assert read == [0, 1]
    reader = ImageReader(root)
    for row in np.random.default_rng(1).permutation(ROWS):
        assert reader.read(paths[row]) == content(row)
    assert sorted(read[2:]) == [0, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.jpg", "No such file"),
        ("../x.jpg", "leads out"),
        ("/etc/passwd", "absolute"),
        ("a\0.jpg", "NUL"),
        ("deep", "directory"),
        ("no.parquet::0::bytes", "no.parquet"),
        ("../s.parquet::0::bytes", "leads out"),
        (f"deep/s.parquet::{ROWS}::bytes", "does not exist"),
        ("deep/s.parquet::0::nothing", "no column 'nothing'"),
        ("deep/s.parquet::0::text", "holds no bytes"),
        ("deep/s.parquet::0::point", "no field 'bytes'"),
        ("deep/s.parquet::7::large", "holds no bytes"),
        ("torn.parquet::0::bytes", "torn.parquet"),
        ("empty.parquet::0::bytes", "does not exist"),
        ("deep/a.jpg::0::bytes", "deep/a.jpg"),
    ],
)
def test_errors_name_the_path(root: Path, path: str, message: str) -> None:
    ((same, error),) = iterate_image_bytes(root, [path])
    assert same == path
    assert isinstance(error, OSError)
    assert message in str(error)
    with pytest.raises(OSError, match=message.replace("'", ".")):
        image_bytes(root, path)


def test_one_bad_row_does_not_stop_the_others(root: Path) -> None:
    paths = [shard_path("deep/s.parquet", row, "large") for row in (6, 7, 8, ROWS)]
    found = [value for _, value in iterate_image_bytes(root, paths)]
    assert [isinstance(value, OSError) for value in found] == [False, True, False, True]


def test_reader_goes_to_worker_processes(root: Path) -> None:
    reader = ImageReader(root)
    path = shard_path("deep/s.parquet", 3, "bytes")
    assert reader.read(path) == content(3)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(reader.read, path).result() == content(3)


def test_addresses() -> None:
    assert parse_shard_path(shard_path("a/b.parquet", 12, "image")) == ("a/b.parquet", 12, "image")
    assert parse_shard_path("a/b.jpg") is None
