"""Bad rows and bad images are kept in one table with their file, row and reason; too many of them stop the run.

The table has the columns `kind` (`row`, `image` or `duplicate`), `source` (file), `row` (number in that file, or null),
`key` (the column, path or value concerned) and `reason` (one sentence, the same for every case of one fault, so that
reasons can be counted).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import pandas as pd

Kind = Literal["row", "image", "duplicate"]
COLUMNS = ["kind", "source", "row", "key", "reason"]
EXAMPLES = 3
REASONS = 8


class QuarantineError(ValueError):
    """More rows or images are bad than `data.max_bad_share` allows."""


class Entry(NamedTuple):
    """One line of the quarantine table."""

    kind: Kind
    source: str
    row: int | None
    key: str
    reason: str


def build(entries: Iterable[Entry]) -> pd.DataFrame:
    """Make a quarantine table of entries, in their order.

    Sources and keys are made printable: a lone surrogate (the mark of an undecodable byte) and NUL are shown as
    escapes, so that the table can be stored.
    """
    printable = [e._replace(source=_printable(e.source), key=_printable(e.key)) for e in entries]
    types = dict.fromkeys(COLUMNS, "str") | {"row": "Int64"}
    return pd.DataFrame(printable, columns=COLUMNS).astype(types)


def merge(*tables: pd.DataFrame) -> pd.DataFrame:
    """Join quarantine tables; the same fault of the same row is listed once."""
    filled = [table for table in tables if len(table)]
    if not filled:
        return build([])
    return pd.concat(filled, ignore_index=True).drop_duplicates(ignore_index=True)


def counts(quarantine: pd.DataFrame) -> pd.DataFrame:
    """Count the entries of each kind and reason, most frequent first: columns `kind`, `reason`, `count`."""
    found = quarantine.groupby(["kind", "reason"], sort=False).size().reset_index(name="count")
    return found.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def check_share(quarantine: pd.DataFrame, n_rows: int, n_images: int, max_bad_share: float) -> None:
    """Stop when too much is bad.

    A row with several faults counts once. Duplicates are not bad: they are left out and listed, nothing else.

    Args:
        quarantine: The quarantine table.
        n_rows: Rows that were read, good or bad.
        n_images: Distinct images that were packed or failed; 0 before packing.
        max_bad_share: Highest share of bad rows, and of bad images, that is accepted.

    Raises:
        QuarantineError: One error with the shares, the counts per reason and the first examples of each.
    """
    rows = quarantine[quarantine["kind"] == "row"]
    bad_rows = len(rows.drop_duplicates(["source", "row"]))
    bad_images = quarantine.loc[quarantine["kind"] == "image", "key"].nunique()
    checks = [("row", "rows", bad_rows, n_rows), ("image", "images", bad_images, n_images)]
    broken = [(kind, name, bad, total) for kind, name, bad, total in checks if total and bad / total > max_bad_share]
    if not broken:
        return
    message = [f"{bad} of {total} {name} are bad ({bad / total:.1%})" for _, name, bad, total in broken]
    lines = [f"{' and '.join(message)}, more than data.max_bad_share = {max_bad_share:.1%} allows."]
    for kind, *_ in broken:
        lines += _describe(quarantine[quarantine["kind"] == kind])
    lines.append("Fix them, or raise data.max_bad_share if the run should go on without them.")
    raise QuarantineError("\n".join(lines))


def _describe(entries: pd.DataFrame) -> Iterator[str]:
    """Lines with the counts per reason and the first examples of each."""
    found = counts(entries)
    for reason, count in zip(found["reason"][:REASONS], found["count"][:REASONS], strict=True):
        yield f"  {count} x {reason}"
        for entry in entries[entries["reason"] == reason].head(EXAMPLES).itertuples():
            place = str(entry.source) if pd.isna(entry.row) else f"{entry.source}:{entry.row}"
            yield f"      {place}  {entry.key}"
    if len(found) > REASONS:
        yield f"  and {len(found) - REASONS} more reasons (see the quarantine table)"


def _printable(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
