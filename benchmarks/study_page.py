"""What `benchmarks.study` found, as JSON in `benchmarks/results/` and as Markdown tables in `docs/retrieval.md`.

A table shows values in percent with their intervals; a gain is bold where its interval leaves zero out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contest import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "retrieval.md"
MARKED = re.compile(r"<!-- study -->\n.*?<!-- /study -->", re.DOTALL)


def table(environment: str, facts: Mapping[str, Any]) -> str:
    """The tables of one environment, in Markdown."""
    metrics = facts["metrics"]
    sizes = "; ".join(f"{split} {texts} texts, {images} images" for split, (texts, images) in facts["sizes"].items())
    lines = [f"### `{environment}`", "", f"{sizes}. Percent; tuned on dev by {label(metrics[-1])}.", ""]
    kinds = list(dict.fromkeys(row["kind"] for row in facts["rows"]))
    for kind in kinds:
        rows = [row for row in facts["rows"] if row["kind"] == kind]
        columns = list(rows[0]["metrics"])
        head = [kind, "of", "", "chosen on dev", *(cell for metric in columns for cell in (label(metric), "gain"))]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in rows:
            name = row["name"] + (" (T)" if row["transductive"] and not row["name"].endswith("transductive") else "")
            setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items())
            cells = [name, row["of"], row["direction"], setting]
            for metric in columns:
                cells += [shown(row["metrics"][metric]), gain(row["metrics"][metric])]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def label(metric: str) -> str:
    """As papers write it."""
    kind, _, k = metric.rpartition("_at_")
    return {"recall": f"R@{k}", "map": f"mAP@{k}"}.get(kind, metric.replace("_", " "))


def shown(facts: Mapping[str, float]) -> str:
    """Value and interval, percent."""
    return f"{100 * facts['value']:.1f} [{100 * facts['low']:.1f}, {100 * facts['high']:.1f}]"


def gain(facts: Mapping[str, float]) -> str:
    """Difference, interval and p; bold where the interval leaves zero out."""
    if "gain" not in facts:
        return ""
    ends = f"[{100 * facts['gain_low']:+.1f}, {100 * facts['gain_high']:+.1f}]"
    text = f"{100 * facts['gain']:+.1f} {ends}"
    sure = facts["gain_low"] > 0 or facts["gain_high"] < 0
    return f"{f'**{text}**' if sure else text} p {facts['p']:.3f}"


def write(found: Mapping[str, Any]) -> None:
    """Results and the tables between the marks of the page; environments that were studied before are kept."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "study.json"
    before = json.loads(file.read_text())["environments"] if file.exists() else {}
    environments = dict(sorted({**before, **found["environments"]}.items()))
    file.write_text(json.dumps({**found, "environments": environments}, indent=2))
    body = "\n".join(table(name, facts) for name, facts in environments.items())
    top, bottom = MARKED.split(PAGE.read_text())
    PAGE.write_text(f"{top}<!-- study -->\n{body}<!-- /study -->{bottom}")
