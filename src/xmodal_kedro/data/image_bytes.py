"""Encoded image bytes by the `path` of the pair table: of a file, or of one row of a Parquet shard.

An address in a shard is `<shard>::<row>::<column>`, with the shard relative to the root, the row counted from 0 and a
column that holds the bytes themselves or `{bytes, path}`. Two ways in: `iterate_image_bytes` streams many images and
reads every row group once; `ImageReader` answers in any order from a few cached row groups and goes to worker
processes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_kedro.data.paths import SHARD_PATH, PathError, confine

BATCH = 64  # rows of a shard that are in memory at a time while streaming


class Address(NamedTuple):
    """One cell of a shard; `row` counts from 0."""

    shard: str
    row: int
    column: str


def shard_path(shard: str, row: int, column: str) -> str:
    """Write the address of a cell as the `path` of a pair."""
    return f"{shard}::{row}::{column}"


def parse_shard_path(path: str) -> Address | None:
    """Read the address of a cell; none for the path of a file."""
    match = SHARD_PATH.fullmatch(path)
    return None if match is None else Address(match["shard"], int(match["row"]), match["column"])


def image_bytes(root: Path, path: str) -> bytes:
    """Read one image; `ImageReader` is the one to keep for many.

    Raises:
        OSError: The file or the cell cannot be read; the message names it.
    """
    return ImageReader(root).read(path)


def iterate_image_bytes(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
    """Read many images, each distinct path once; files first, then shard by shard in the order of their rows.

    Row groups are streamed in batches: memory holds a few images, not a shard.

    Args:
        root: What the paths are relative to.
        paths: Paths of the pair table.

    Yields:
        The path with its bytes, or with the error that came instead.
    """
    shards: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for path in dict.fromkeys(paths):
        address = parse_shard_path(path)
        if address is None:
            yield path, _read_file(root, path)
        else:
            shards[address.shard, address.column][address.row] = path
    for (shard, column), wanted in shards.items():
        yield from _stream(root, shard, column, wanted)


class ImageReader:
    """Reads images in any order and keeps the last row groups.

    Sent to another process it takes its root along and leaves its cache behind. One instance serves one thread.

    Args:
        root: What the paths are relative to.
        cached: Row groups kept in memory, each with all bytes of its column.
    """

    def __init__(self, root: Path, cached: int = 2) -> None:
        self.root = root
        self.cached = cached
        self._shards: dict[str, _Shard] = {}
        self._groups: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = OrderedDict()

    def __reduce__(self) -> tuple[type[ImageReader], tuple[Path, int]]:
        return ImageReader, (self.root, self.cached)

    def read(self, path: str) -> bytes:
        """Read the encoded bytes of one image.

        Raises:
            OSError: The file or the cell cannot be read; the message names it.
        """
        address = parse_shard_path(path)
        found = _read_file(self.root, path) if address is None else self._read_cell(address, path)
        if isinstance(found, OSError):
            raise found
        return found

    def _read_cell(self, address: Address, path: str) -> bytes | OSError:
        try:
            if address.shard not in self._shards:
                self._shards[address.shard] = _Shard(self.root, address.shard)
            shard = self._shards[address.shard]
            group = shard.group_of(address.row)
            key = (address.shard, group, address.column)
            if key not in self._groups:
                while len(self._groups) >= max(1, self.cached):
                    self._groups.popitem(last=False)
                leaf = shard.leaf(address.column)
                self._groups[key] = _values(shard.file.read_row_group(group, columns=[leaf]).column(0))
            self._groups.move_to_end(key)
            return _checked(self._groups[key][address.row - shard.starts[group]].as_py(), path)
        except (pa.ArrowException, PathError, OSError) as error:
            return OSError(f"{path}: {error}")


class _Shard:
    """An open Parquet file, and the first row of each of its row groups."""

    def __init__(self, root: Path, name: str) -> None:
        self.file = pq.ParquetFile(root / confine(name))
        metadata = self.file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = list(accumulate(sizes, initial=0))

    def group_of(self, row: int) -> int:
        if row >= self.starts[-1]:
            raise OSError(f"row {row} does not exist, the shard has {self.starts[-1]} rows")
        return bisect_right(self.starts, row) - 1

    def leaf(self, column: str) -> str:
        """The Parquet column to read: for `{bytes, path}` only its bytes."""
        schema = self.file.schema_arrow
        if column not in schema.names:
            raise OSError(f"no column '{column}', the shard has {', '.join(schema.names)}")
        kind = schema.field(column).type
        if not pa.types.is_struct(kind):
            return column
        if kind.get_field_index("bytes") < 0:
            raise OSError(f"column '{column}' has no field 'bytes', it is {kind}")
        return f"{column}.bytes"


def _stream(root: Path, name: str, column: str, wanted: dict[int, str]) -> Iterator[tuple[str, bytes | OSError]]:
    """The wanted rows of one column of a shard in order; after an error every row that is left gets that error."""
    left = dict(sorted(wanted.items()))
    try:
        shard = _Shard(root, name)
        leaf = shard.leaf(column)
        rows_of_group: dict[int, list[int]] = defaultdict(list)
        for row in [row for row in left if row < shard.starts[-1]]:
            rows_of_group[shard.group_of(row)].append(row)
        for group, rows in rows_of_group.items():
            pending = deque(rows)
            start = shard.starts[group]
            for batch in shard.file.iter_batches(BATCH, row_groups=[group], columns=[leaf]):
                values = _values(batch.column(0))
                while pending and pending[0] < start + len(values):
                    row = pending.popleft()
                    path = left.pop(row)
                    yield path, _checked(values[row - start].as_py(), path)
                start += len(values)
        failure = OSError(f"row does not exist, the shard has {shard.starts[-1]} rows")
    except (pa.ArrowException, PathError, OSError) as error:
        failure = OSError(str(error))
    for path in left.values():
        yield path, OSError(f"{path}: {failure}")


def _values(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The bytes of a column that was read as plain bytes or as a struct of bytes alone."""
    if not pa.types.is_struct(column.type):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([chunk.field(0) for chunk in column.chunks], type=column.type.field(0).type)
    return column.field(0)


def _checked(value: object, path: str) -> bytes | OSError:
    return value if isinstance(value, bytes) else OSError(f"{path}: the cell holds no bytes")


def _read_file(root: Path, path: str) -> bytes | OSError:
    try:
        return (root / confine(path)).read_bytes()
    except PathError as error:
        return OSError(f"{path}: {error}")
    except OSError as error:
        return error
