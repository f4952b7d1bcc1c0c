"""JSON lines: one object a line, fields by name, lists of captions or of images in a field."""

from __future__ import annotations

import json
from typing import Any

from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import UNDECODABLE, RawRows, Reading, SourceError, cell_columns, text_columns
from xmodal_kedro.data.text_files import is_undecodable, split_lines


@reads("jsonl")
def read_jsonl(reading: Reading) -> RawRows:
    """Read one JSON object a line.

    A field that one line lacks is empty there; a configured field that no line has is an error. Chinese-CLIP's
    `{"text_id", "text", "image_ids"}` is read with `columns: {image: image_ids, text_id: text_id}`.

    Raises:
        SourceError: No such file, a field that no line has, or one JSON array instead of lines.
    """
    columns = reading.source.columns
    file = str(reading.source.file)
    lines = split_lines(reading.text())
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        raise SourceError(
            f"{reading.key}.file: {file} is one JSON array, not one object a line. "
            f"Turn it around with: jq -c '.[]' {file}"
        )
    rows = RawRows(reading.source, file)
    objects: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found, reason = _parse(line)
        if found is None:
            rows.reject(number, line.strip()[:80], reason)
        else:
            objects.append((number, found))
    if objects:
        reading.check_columns(file, list(dict.fromkeys(name for _, found in objects for name in found)))
    fields = cell_columns(columns)
    texts = text_columns(columns)
    for number, found in objects:
        cells = {role: found.get(name) for role, name in fields.items()}
        rows.add(number, cells, [found.get(name) for name in texts])
    return rows


def _parse(line: str) -> tuple[dict[str, Any] | None, str]:
    if is_undecodable(line):
        return None, UNDECODABLE
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None, "line is no valid JSON"
    if not isinstance(found, dict):
        return None, "line is no JSON object"
    return found, ""
