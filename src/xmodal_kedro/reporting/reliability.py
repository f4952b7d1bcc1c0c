"""What a calibration promised against what came true, as a Plotly figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xmodal_kedro.reporting.figures import COLORS


def reliability_figure(calibration: Mapping[str, Any], shown: str = "ensemble") -> go.Figure:
    """Share of right first places over their mean probability, a panel per direction, a line per name and group.

    Args:
        calibration: Of `confidence.calibrate_slices`.
        shown: Whose lines are drawn at once; the others' appear when their legend entry is clicked.
    """
    names = calibration["calibrated"]
    directions = list(dict.fromkeys(direction for found in names.values() for direction in found)) or ["t2i"]
    figure = make_subplots(rows=1, cols=len(directions), shared_yaxes=True, subplot_titles=directions)
    for column, direction in enumerate(directions, start=1):
        exact = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#555555"}, showlegend=False)
        figure.add_trace(exact, row=1, col=column)
        lines = [(name, group, entry) for name, found in names.items() for group, entry in found[direction].items()]
        for number, (name, group, entry) in enumerate(lines):
            rows = entry["reliability"]
            line = go.Scatter(
                x=[row["probability"] for row in rows],
                y=[row["right"] for row in rows],
                error_y={
                    "array": [row["right_high"] - row["right"] for row in rows],
                    "arrayminus": [row["right"] - row["right_low"] for row in rows],
                },
                name=f"{name}, {group}",
                legendgroup=f"{name}, {group}",
                mode="lines+markers",
                marker_color=COLORS[number % len(COLORS)],
                visible=True if name == shown else "legendonly",
                showlegend=column == 1,
            )
            figure.add_trace(line, row=1, col=column)
            if name == shown and entry["threshold"] is not None:
                at = entry["threshold"]["probability"]
                dashed = {"dash": "dash", "color": COLORS[number % len(COLORS)]}
                figure.add_vline(x=at, line=dashed, annotation_text=f"match, {group}", row=1, col=column)
        figure.update_xaxes(title_text="probability of the first place", range=[0, 1], row=1, col=column)
    figure.update_yaxes(title_text="share that is right", range=[0, 1], row=1, col=1)
    figure.update_layout(template="plotly_white", height=440, legend={"orientation": "h"})
    return figure
