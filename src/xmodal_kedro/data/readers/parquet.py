"""Parquet shards as hubs ship them: image bytes inside (never loaded here), or image paths in a column."""

from __future__ import annotations

import glob
import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_kedro.data.image_bytes import iterate_image_bytes, shard_path
from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import RawPair, RawRows, Reading, SourceError, cell_columns, text_columns


@reads("parquet")
def read_parquet(reading: Reading) -> RawRows:
    """Read the shards that match the source's glob, in the order of their names.

    With `columns.bytes`, an image is addressed by its shard, row and column, and named by `columns.image` (or the
    `path` of a `{bytes, path}` cell; by its row where there is no name). Rows of one name (or one user's id) whose
    bytes are equal are one image: they share the address of the first.

    Raises:
        SourceError: No shard, a shard that is no Parquet file, or no such column.
    """
    source, columns = reading.source, reading.source.columns
    pattern = str(source.file)
    shards = [Path(name).as_posix() for name in sorted(glob.glob(pattern, root_dir=reading.root, recursive=True))]
    if not shards:
        raise SourceError(f"{reading.key}.file: nothing matches '{pattern}' under {reading.root}.")
    rows = RawRows(source, pattern)
    for shard in shards:
        refused = reading.tree.find(shard).reason if columns.bytes is not None else None
        if refused is not None:
            raise SourceError(f"{reading.key}.file: {shard}: {refused.replace('image', 'shard')}.")
        try:
            _read_shard(reading, shard, rows)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{reading.key}.file: {shard} cannot be read as Parquet ({error}).") from None
    if columns.bytes is not None:
        rows.pairs = _share_equal_images(reading.root, rows.pairs)
    return rows


def _read_shard(reading: Reading, shard: str, rows: RawRows) -> None:
    columns = reading.source.columns
    with pq.ParquetFile(reading.root / shard) as file:
        schema = file.schema_arrow
        reading.check_columns(shard, schema.names)
        names = cell_columns(columns)
        leaves = {role: name for role, name in names.items() if role != "image"} | _image_leaf(reading, shard, schema)
        texts = text_columns(columns)
        table = file.read(columns=list(dict.fromkeys([*leaves.values(), *texts])))
        count = file.metadata.num_rows
    by_role = {role: _cells(table, names[role], leaf) for role, leaf in leaves.items()}
    captions = [table.column(name).to_pylist() for name in texts]
    for row in range(count):
        path = None if columns.bytes is None else shard_path(shard, row, columns.bytes)
        cells = {role: column[row] for role, column in by_role.items()}
        rows.add(row + 1, cells, [column[row] for column in captions], path=path, file=shard)


def _image_leaf(reading: Reading, shard: str, schema: pa.Schema) -> dict[str, str]:
    """The column that names the image: never the one with the bytes, of `{bytes, path}` only the path."""
    columns = reading.source.columns
    if columns.image is None:
        return {}
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind):
        return {"image": f"{columns.image}.path"} if kind.get_field_index("path") >= 0 else {}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        if columns.bytes != columns.image:
            raise SourceError(
                f"{reading.key}.columns.image: column '{columns.image}' of {shard} holds bytes, not names. "
                f"Set columns.bytes to '{columns.image}', and columns.image to the column of the names or to null."
            )
        return {}
    return {"image": columns.image}


def _cells(table: pa.Table, name: str, leaf: str) -> list[Any]:
    column = table.column(name)
    if leaf != name:
        return [None if cell is None else cell["path"] for cell in column.to_pylist()]
    return list(column.to_pylist())


def _share_equal_images(root: Path, pairs: list[RawPair]) -> list[RawPair]:
    """Give rows that repeat an image (same id, equal bytes) the address of its first row.

    Only the bytes of repeated ids are read. An id with different bytes keeps its different addresses, for the check of
    the whole pair table to find.
    """
    addresses: dict[str, dict[str, None]] = defaultdict(dict)
    for pair in pairs:
        name = pair.image_id or (f"{pair.source}/{pair.image}" if pair.image else None)
        if name is not None and pair.path is not None:
            addresses[name][pair.path] = None
    repeated = [list(paths) for paths in addresses.values() if len(paths) > 1]
    if not repeated:
        return pairs
    digests = {
        path: hashlib.blake2b(found).digest()
        for path, found in iterate_image_bytes(root, [path for paths in repeated for path in paths])
        if isinstance(found, bytes)
    }
    first = {
        path: paths[0]
        for paths in repeated
        for path in paths
        if path in digests and digests[path] == digests.get(paths[0])
    }
    return [pair._replace(path=first.get(pair.path, pair.path)) if pair.path else pair for pair in pairs]
