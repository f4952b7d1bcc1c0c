"""CSV and TSV: any column names, separators and quoting; a broken record costs itself, not the rest of the file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

import pandas as pd

from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import RawRows, Reading, SourceError, cell_columns, configured, text_columns
from xmodal_kedro.data.text_files import split_lines

SEPARATORS = (",", "\t", ";")
_UNCLOSED = "a quote is opened and never closed in this record: double quotes inside a text must be doubled"
_TOO_LONG = "record has more fields than the header: put texts that hold the separator in double quotes"
_TOO_SHORT = "record has fewer fields than the header"


@reads("table")
def read_table(reading: Reading) -> RawRows:
    """Read a CSV or TSV file with a header.

    The separator is the source's own, else the one under which the header has the configured columns. A record that
    spans lines is numbered by its first line.

    Raises:
        SourceError: No such file or column, an empty file, or a separator of several characters.
    """
    source, columns = reading.source, reading.source.columns
    file = str(source.file)
    lines, separator, header = _opened(reading)
    reading.check_columns(file, header)
    texts = [header.index(name) for name in text_columns(columns)]
    places = {role: header.index(name) for role, name in cell_columns(columns).items()}
    rows = RawRows(source, file)
    for line, cells in _records(lines, separator, len(header)):
        if cells is None:
            rows.reject(line, lines[line - 1].strip()[:80], _UNCLOSED)
        elif len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            rows.reject(line, f"{len(cells)} fields, {len(header)} in the header", _TOO_LONG)
        elif len(cells) < len(header):
            rows.reject(line, f"{len(cells)} fields, {len(header)} in the header", _TOO_SHORT)
        else:
            by_role = {role: cells[place] for role, place in places.items()}
            rows.add(line, by_role, [cells[place] for place in texts])
    return rows


def table_cells(reading: Reading) -> pd.DataFrame:
    """The cells of a CSV or TSV file as they stand, columns that the recipe does not name too.

    Returns:
        A column per name in the header (of equal names the first), indexed by the row's number as in `read_table`;
        records that are broken are left out.

    Raises:
        SourceError: As for `read_table`.
    """
    lines, separator, header = _opened(reading)
    records = [(line, cells) for line, cells in _records(lines, separator, len(header)) if cells is not None]
    whole = [(line, cells[: len(header)]) for line, cells in records if len(cells) >= len(header)]
    table = pd.DataFrame([cells for _, cells in whole], [line for line, _ in whole], header, dtype="str")
    return table.loc[:, ~table.columns.duplicated()]


def _opened(reading: Reading) -> tuple[list[str], str, list[str]]:
    """Lines of the file with their ends, its separator, and the names in its header."""
    lines = [line + "\n" for line in split_lines(reading.text())]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise SourceError(f"{reading.key}.file: {reading.source.file} is empty: it needs a header line.")
    separator = _separator(reading, lines, [name for _, name in configured(reading.source.columns)])
    return lines, separator, [name.strip() for name in next(csv.reader(lines, delimiter=separator))]


def _separator(reading: Reading, lines: Sequence[str], wanted: Sequence[str]) -> str:
    """The source's separator, or the one that finds most of the wanted columns, then most columns, in the header."""
    given = reading.source.separator
    if given is not None:
        given = "\t" if given == "\\t" else given
        if len(given) != 1:
            raise SourceError(f"{reading.key}.separator: '{given}' is not one character.")
        return given

    def score(separator: str) -> tuple[int, int]:
        header = [name.strip() for name in next(csv.reader(lines, delimiter=separator))]
        return len(set(wanted) & set(header)), len(header)

    return max(SEPARATORS, key=score)


def _records(lines: Sequence[str], separator: str, fields: int) -> Iterator[tuple[int, list[str] | None]]:
    """Records below the header with the number of their first line; none for a record whose quote went astray.

    A stray quote swallows the lines up to the next one, or up to the end of the file. Such a record is recognised (it
    spans lines, and it does not end, has another number of fields than the header, or text behind a closing quote) and
    only its first line is given up: reading goes on with the line after it.
    """
    end = len(lines)
    start = 0
    while start < end:
        # one line more than there are: a record that is still open there was never closed
        source = (lines[k] if k < end else "\n" for k in range(start, end + 1))
        reader = csv.reader(source, delimiter=separator)
        first = start
        try:
            for cells in reader:
                after = start + reader.line_num
                if after - first > 1 and first > 0:
                    if after > end or len(cells) != fields:
                        raise csv.Error("a quote went astray")
                    list(csv.reader(lines[first:after], delimiter=separator, strict=True))
                if first > 0 and any(cell.strip() for cell in cells):
                    yield first + 1, cells
                first = after
        except csv.Error:  # also by csv itself: text behind a closing quote, a field of more than 131 072 characters
            yield first + 1, None
            start = first + 1
        else:
            return
