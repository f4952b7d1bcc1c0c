"""A text file with one query a line, in the order in which answers are expected."""

from __future__ import annotations

from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import RawRows, Reading
from xmodal_kedro.data.text_files import split_lines


@reads("queries")
def read_queries(reading: Reading) -> RawRows:
    """Read text-only rows; an empty line between queries is quarantined, at the end of the file it is nothing.

    Raises:
        SourceError: No such file.
    """
    rows = RawRows(reading.source, str(reading.source.file))
    for number, line in enumerate(split_lines(reading.text().rstrip()), start=1):
        rows.add(number, {}, [line])
    return rows
