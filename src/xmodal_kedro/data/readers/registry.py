"""Formats by name: a new format is one file with one decorated function."""

from __future__ import annotations

from collections.abc import Callable

from xmodal_kedro.data.readers.rows import RawRows, Reading

Reader = Callable[[Reading], RawRows]
READERS: dict[str, Reader] = {}


def reads(name: str) -> Callable[[Reader], Reader]:
    """Register a function as the reader of the format `name`."""

    def register(reader: Reader) -> Reader:
        if name in READERS:
            raise ValueError(f"two readers for the format '{name}'")
        READERS[name] = reader
        return reader

    return register
