"""Leaks, contradictions and duplicates of a pair table, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def faults(rows: Sequence[Row]) -> dict[int, str]:
    """Position of every row that must go, with the name of its fault."""
    found: dict[int, str] = {}
    for place, row in enumerate(rows):
        for other in rows:
            same = any(row[key] is not None and row[key] == other[key] for key in ("image_id", "path"))
            held_out = {"train": ("dev", "val", "test"), "dev": ("val", "test")}.get(str(row["split"]), ())
            if same and other["split"] in held_out:
                found[place] = "leak"
    for fault, keys, value in (
        ("path", ("image_id",), "path"),
        ("id", ("path",), "image_id"),
        ("text", ("split", "text_id"), "text"),
    ):
        first: dict[tuple[object, ...], object] = {}
        for place, row in enumerate(rows):
            if place in found or row[value] is None or any(row[key] is None for key in keys):
                continue
            if first.setdefault(tuple(row[key] for key in keys), row[value]) != row[value]:
                found[place] = fault
    seen = set()
    for place, row in enumerate(rows):
        if place in found or row["image_id"] is None:
            continue
        key = (row["image_id"], row["text"], row["split"])
        if key in seen:
            found[place] = "duplicate"
        seen.add(key)
    return found
