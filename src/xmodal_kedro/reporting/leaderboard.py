"""Members, ensemble and chance side by side: one row each per group, of one split, with intervals and gallery sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from xmodal_kedro.retrieval.metric_names import higher_is_better

CHANCE = "chance"
FUSED = "fused"
POOLED = "all"
SHOWN = ("t2i.map_at_10", "t2i.recall_at_1", "t2i.recall_at_10", "i2t.map_at_10")
COLUMNS = 4  # of metrics that fit a line
FACTS = ["split", "group", "member", "texts", "images"]


def leaderboard(metrics: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Bring the long metric tables of members and ensemble into one row each.

    Args:
        metrics: Columns `member, split, group, direction, metric, value, low, high, chance, n_gallery`.
        split: Which; by default `val` where there is one, else the first.

    Returns:
        Columns `split, group, member, texts, images` (gallery sizes), then for every direction and metric
        `t2i.map_at_10`, `t2i.map_at_10.low`, `t2i.map_at_10.high`, and so on. Rows: the pooled group first, in it the
        members in their order, and after them `chance`, the expected values of a random order.

    Raises:
        ValueError: No row of the split, or a value occurs twice.
    """
    there = list(dict.fromkeys(metrics["split"]))
    if split is None and there:
        split = "val" if "val" in there else there[0]
    chosen = metrics[metrics["split"] == split]
    if chosen.empty:
        raise ValueError(f"there are no metrics of split '{split}'; there are: {', '.join(map(str, there)) or 'none'}.")
    keys = ["group", "member", "direction", "metric"]
    if (twice := chosen.duplicated(keys)).any():
        raise ValueError(f"{tuple(chosen.loc[twice, keys].iloc[0])} occurs twice in the metrics of split '{split}'.")
    groups = sorted(dict.fromkeys(chosen["group"]), key=lambda group: group != POOLED)
    rows = []
    for group in groups:
        of_group = chosen[chosen["group"] == group]
        sizes = of_group.drop_duplicates("direction").set_index("direction")["n_gallery"]
        facts = {"split": split, "group": group, "texts": sizes.get("i2t", np.nan), "images": sizes.get("t2i", np.nan)}
        for member, found in of_group.groupby("member", sort=False):
            row = facts | {"member": member}
            for cell in found.itertuples():
                name = f"{cell.direction}.{cell.metric}"
                row |= {name: cell.value, f"{name}.low": cell.low, f"{name}.high": cell.high}
            rows.append(row)
        by_name = of_group["direction"] + "." + of_group["metric"]
        rows.append(facts | {"member": CHANCE} | of_group["chance"].groupby(by_name, sort=False).first().to_dict())
    board = pd.DataFrame(rows)
    return board[[*FACTS, *(name for name in board.columns if name not in FACTS)]]


def render(board: pd.DataFrame, columns: Sequence[str] | None = None, width: int = 100) -> str:
    """The leaderboard as plain text, a table per group.

    Args:
        board: Of `leaderboard`.
        columns: Metrics to show; by default those of `SHOWN` that are there, else the first four.
        width: Of a line, in characters.

    Returns:
        Text with values and intervals (rates in percent), the best of each column marked with a star.
    """
    names = [name for name in board.columns if name not in FACTS and not name.endswith((".low", ".high"))]
    if columns is None:
        columns = [name for name in SHOWN if name in names] or names[:COLUMNS]
    if unknown := [name for name in columns if name not in names]:
        raise ValueError(f"the leaderboard has no column {unknown[0]}; it has {', '.join(names)}.")
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, emoji=False, markup=False)
    for group, rows in board.groupby("group", sort=False):
        first = rows.iloc[0]
        table = Table(box=None, pad_edge=False, show_edge=False)
        table.add_column("member", overflow="fold")
        for name in columns:
            table.add_column(name.replace(".", " ", 1), justify="right")
        best = {name: _best(rows, name) for name in columns}
        for index, row in rows.iterrows():
            table.add_row(str(row["member"]), *(_cell(row, name, index in best[name]) for name in columns))
        console.print(f"{first['split']}, {group}: {_size(first['texts'])} texts, {_size(first['images'])} images")
        console.print(table)
        console.print()
    console.print("Rates in percent, [95 % interval], * best; each query is ranked over the full gallery of its group.")
    return text.getvalue()


def render_gain(comparison: pd.DataFrame) -> str:
    """What the ensemble gains over the member that is best on dev, and by re-ranking; a line per direction and metric.

    Args:
        comparison: Columns `split, member, direction, metric, difference, low, high, p` and, where there is a dev
            split, `best_on_dev`; without one every member is listed. The member `fused` is the ensemble before its
            re-ranking.
    """
    kept = comparison["best_on_dev"] | (comparison["member"] == FUSED) if "best_on_dev" in comparison else slice(None)
    rows = comparison[kept]
    lines = []
    for row in rows.to_dict("records"):
        change, low, high = (100 * row[name] for name in ("difference", "low", "high"))
        what = f"{row['direction']} {row['metric']:<13} ensemble - {row['member']}"
        lines.append(f"  {what}: {change:+5.1f} [{low:+.1f}, {high:+.1f}], p = {row['p']:.3f}")
    fused = " and over the mixture before re-ranking" if (rows["member"] == FUSED).any() else ""
    title = f"Gain on {comparison['split'].iloc[0]} over the member that is best on dev{fused} (paired, in points):"
    return "\n".join([title, *lines])


def _best(rows: pd.DataFrame, name: str) -> set[object]:
    """Index of the rows with the best value, chance aside."""
    values = rows.loc[rows["member"] != CHANCE, name].dropna()
    if values.empty:
        return set()
    top = values.max() if higher_is_better(name.split(".", 1)[1]) else values.min()
    return set(values.index[values == top])


def _cell(row: pd.Series, name: str, best: bool) -> str:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}.low", f"{name}.high"))
    if pd.isna(value):
        return "-"
    factor = 100.0 if higher_is_better(name.split(".", 1)[1]) else 1.0
    shown = f"{value * factor:.1f}"
    if not pd.isna(low):
        shown += f" [{low * factor:.1f}, {high * factor:.1f}]"
    return shown + ("*" if best else " ")


def _size(count: float) -> str:
    return "?" if pd.isna(count) else str(int(count))
