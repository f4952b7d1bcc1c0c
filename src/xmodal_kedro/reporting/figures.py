"""Figures of training and results as Plotly figures, which Kedro-Viz and MLflow show and JSON carries."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xmodal_kedro.retrieval.metric_names import higher_is_better

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's palette: apart for colour-blind eyes, too."""

CURVES = ("dev/t2i.map_at_10", "dev/i2t.map_at_10", "dev/t2i.recall_at_1", "dev/t2i.recall_at_10")
VARIETY = ("dev/distinct_captions", "dev/repetition_")  # shares, which the scores of captions would flatten


def training_curves(history: pd.DataFrame) -> go.Figure:
    """Loss, metrics on dev, learning rate and speed over epochs, one panel each; what the history lacks is left out.

    Args:
        history: A row per epoch with `epoch` and any of `loss`, `lr`, `pairs_per_second`, `captions_per_second`,
            `dev/<metric>`.

    Raises:
        ValueError: There is no column `epoch`.
    """
    if "epoch" not in history.columns:
        raise ValueError(f"a training history needs a column 'epoch'; it has {', '.join(map(str, history.columns))}.")
    of_dev = [name for name in history.columns if name.startswith("dev/") and not name.startswith(VARIETY)]
    panels = {
        "loss": ["loss"],
        "on dev": [name for name in CURVES if name in of_dev] or of_dev[: len(COLORS)],
        "variety of captions on dev": [name for name in history.columns if name.startswith(VARIETY)],
        "learning rate": ["lr"],
        "pairs per second": ["pairs_per_second"],
        "captions per second": ["captions_per_second"],
    }
    filled = {title: [n for n in names if n in history and history[n].notna().any()] for title, names in panels.items()}
    filled = {title: names for title, names in filled.items() if names}
    figure = make_subplots(rows=max(1, len(filled)), cols=1, shared_xaxes=True, subplot_titles=list(filled))
    for row, names in enumerate(filled.values(), start=1):
        for number, name in enumerate(names):
            seen = history.loc[history[name].notna(), ["epoch", name]]
            line = go.Scatter(
                x=seen["epoch"].tolist(),
                y=seen[name].astype(float).tolist(),
                name=name.removeprefix("dev/"),
                mode="lines+markers",
                line={"color": COLORS[number % len(COLORS)]},
                showlegend=len(names) > 1,
            )
            figure.add_trace(line, row=row, col=1)
    figure.update_xaxes(title_text="epoch", row=max(1, len(filled)), col=1)
    return _dressed(figure, height=160 + 180 * len(filled))


def leaderboard_bars(metrics: pd.DataFrame, metric: str = "map_at_10", split: str | None = None) -> go.Figure:
    """A metric of members and ensemble with its 95 % intervals; a panel per direction, a colour per group.

    Args:
        metrics: Columns `member, split, group, direction, metric, value, low, high, chance`.
        metric: Which; by default the one that CVPR 2023 track 2 is judged by, in its standard form.
        split: Which; by default `val` where there is one, else the first.

    Returns:
        Bars; a short line in each bar's place marks chance.
    """
    splits = list(dict.fromkeys(metrics["split"]))
    if split is None:
        split = "val" if "val" in splits else (splits[0] if splits else None)
    chosen = metrics[(metrics["split"] == split) & (metrics["metric"] == metric)]
    if chosen.empty:
        raise ValueError(f"there is no {metric} of split '{split}' to draw; splits: {', '.join(map(str, splits))}.")
    directions = list(dict.fromkeys(chosen["direction"]))
    groups = list(dict.fromkeys(chosen["group"]))
    factor = 100.0 if higher_is_better(metric) else 1.0
    figure = make_subplots(rows=1, cols=len(directions), shared_yaxes=True, subplot_titles=directions)
    for column, direction in enumerate(directions, start=1):
        for number, group in enumerate(groups):
            rows = chosen[(chosen["direction"] == direction) & (chosen["group"] == group)]
            shared = {"x": rows["member"].tolist(), "legendgroup": group, "offsetgroup": group}
            above, below = (rows["high"] - rows["value"]) * factor, (rows["value"] - rows["low"]) * factor
            bar = go.Bar(
                y=(rows["value"] * factor).tolist(),
                name=group,
                showlegend=column == 1,
                marker_color=COLORS[number % len(COLORS)],
                error_y={"array": above.fillna(0).tolist(), "arrayminus": below.fillna(0).tolist()},
                **shared,
            )
            chance = go.Scatter(
                y=(rows["chance"] * factor).tolist(),
                name="chance",
                mode="markers",
                marker={"symbol": "line-ew", "size": 24, "line": {"width": 2, "color": "#555555"}},
                showlegend=column == 1 and number == 0,
                **shared,
            )
            figure.add_traces([bar, chance], rows=[1, 1], cols=[column, column])
    figure.update_layout(barmode="group", scattermode="group")
    figure.update_yaxes(title_text=f"{metric}{', %' if factor > 1 else ''} ({split})", row=1, col=1)
    return _dressed(figure, height=420)


def caption_bars(leaderboard: pd.DataFrame, metric: str) -> go.Figure:
    """A metric of captioners, ensemble and captions that need no model, with intervals; a colour per split.

    Args:
        leaderboard: Columns `split, captioner`, and of the metric `m`, `m.low`, `m.high`.
        metric: Which, with its tokeniser.
    """
    figure = go.Figure()
    for number, (split, rows) in enumerate(leaderboard.groupby("split", sort=False)):
        above, below = rows[f"{metric}.high"] - rows[metric], rows[metric] - rows[f"{metric}.low"]
        bar = go.Bar(
            x=rows["captioner"].tolist(),
            y=rows[metric].tolist(),
            name=str(split),
            marker_color=COLORS[number % len(COLORS)],
            error_y={"array": above.fillna(0).tolist(), "arrayminus": below.fillna(0).tolist()},
        )
        figure.add_trace(bar)
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text=metric)
    return _dressed(figure, height=420)


def rank_histogram(ranks: Mapping[str, np.ndarray]) -> go.Figure:
    """How deep the best relevant item lies: share of queries per rank, in bins 1, 2-3, 4-7, 8-15, ...

    Args:
        ranks: Name to the best ranks [n] of its queries, from 1 (`Judged.values["mean_rank"]`).
    """
    deepest = max((float(np.max(values)) for values in ranks.values() if len(values)), default=1.0)
    edges = 2 ** np.arange(int(np.log2(deepest)) + 2)
    labels = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    figure = go.Figure()
    for number, (name, values) in enumerate(ranks.items()):
        counts = np.histogram(values, bins=edges)[0]
        share = 100.0 * counts / max(1, len(values))
        figure.add_trace(go.Bar(x=labels, y=share.tolist(), name=name, marker_color=COLORS[number % len(COLORS)]))
    figure.update_xaxes(title_text="rank of the best relevant item", type="category")
    figure.update_yaxes(title_text="queries, %")
    return _dressed(figure, height=380)


def _dressed(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 50, "b": 50}, legend={"orientation": "h"}
    )
    return figure
