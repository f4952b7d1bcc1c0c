"""Values of a pipeline as MLflow stores them: nested parameters as flat text, tables and mappings as named numbers.

Names and lengths are made to fit MLflow's rules here, so that no parameter or metric can be refused.
"""

import dataclasses
import json
import math
import numbers
import re
import sys
from collections.abc import Mapping
from typing import Any

MAX_KEY = 250  # characters, MLflow's limit for names
MAX_PARAM = 6000
MAX_TAG = 8000

NAME_COLUMNS = ("split", "group", "direction", "metric")


def clean_key(name: str) -> str:
    """A name that MLflow accepts: letters of any script, digits and ``_-./`` and blanks; `R@1` becomes `R_at_1`."""
    name = re.sub(r"[^/\w.\- ]", "_", name.replace("@", "_at_"))
    parts = [part for part in name.split("/") if part.strip(". ")]
    return "/".join(parts)[:MAX_KEY] or "_"


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and its full length where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    end = f"... ({len(text)} characters)"
    return text[: limit - len(end)] + end


def flat_params(value: Any, prefix: str = "") -> dict[str, str]:
    """Flatten a parameter: a pydantic model, dataclass or mapping gives one dotted key per leaf.

    Args:
        value: The parameter. Lists of scalars stay one JSON value, lists of mappings are numbered.
        prefix: Key of the value itself; empty for a mapping whose keys are the names.

    Returns:
        Name to text, both within MLflow's limits; None is ``none``.
    """
    value = _plain(value)
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(_plain(item), Mapping) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {clean_key(prefix or "value"): cut(_text(value), MAX_PARAM)}
    flat: dict[str, str] = {}
    for key, item in items:
        flat |= flat_params(item, f"{prefix}.{key}" if prefix else key)
    return flat


def metrics_of(data: Any) -> dict[str, float]:
    """Read named numbers from a metrics table or a mapping; what is no finite number is left out.

    Args:
        data: A DataFrame with the columns `metric` and `value`, named also by those of `split`, `group`, `direction`
            that it has, with optional `low` and `high`; or a mapping, nested or not.

    Returns:
        For example ``val.vehicle.t2i.map_at_10`` with ``val.vehicle.t2i.map_at_10_low`` and ``..._high``.

    Raises:
        TypeError: For anything else.
        ValueError: If two rows have one name.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _table_metrics(data)
    if isinstance(data, Mapping):
        found: dict[str, float] = {}
        _collect_numbers(data, "", found)
        return found
    raise TypeError(f"metrics are read from a table with columns metric and value or from a mapping, not {type(data)}")


def _table_metrics(table: Any) -> dict[str, float]:
    if not {"metric", "value"} <= set(table.columns):
        raise TypeError(f"a metrics table has the columns metric and value; this one has {list(table.columns)}")
    names = [column for column in NAME_COLUMNS if column in table.columns]
    found: dict[str, float] = {}
    seen = set()
    for row in table.to_dict("records"):
        name = clean_key(".".join(str(row[column]) for column in names if isinstance(row[column], str)))
        if name in seen:
            raise ValueError(f"two rows of the metrics table are called {name}")
        seen.add(name)
        for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            if _is_number(row.get(column)):
                found[name + suffix] = float(row[column])
    return found


def _collect_numbers(data: Mapping[Any, Any], prefix: str, found: dict[str, float]) -> None:
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            _collect_numbers(value, name, found)
        elif _is_number(value):
            found[clean_key(name)] = float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping | list | tuple | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
