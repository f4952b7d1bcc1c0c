"""Figures show the numbers they were given and survive the way through JSON."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from xmodal_kedro.reporting.figures import leaderboard_bars, rank_histogram, training_curves


def through_json(figure: go.Figure) -> dict:
    text = figure.to_json()
    assert "bdata" not in text  # plain numbers, which every reader of the JSON understands
    return json.loads(text)


def test_training_curves_skip_what_is_missing():
    history = pd.DataFrame(
        [
            {"epoch": 0, "step": 0, "dev/t2i.map_at_10": 0.1},
            {"epoch": 1, "step": 10, "loss": 2.0, "lr": 1e-3, "dev/t2i.map_at_10": 0.2},
            {"epoch": 2, "step": 20, "loss": 1.5, "lr": 5e-4, "dev/t2i.map_at_10": 0.3},
        ]
    )
    found = {trace["name"]: (trace["x"], trace["y"]) for trace in through_json(training_curves(history))["data"]}
    assert found == {
        "loss": ([1, 2], [2.0, 1.5]),
        "t2i.map_at_10": ([0, 1, 2], [0.1, 0.2, 0.3]),
        "lr": ([1, 2], [1e-3, 5e-4]),
    }
    assert through_json(training_curves(history[["epoch"]]))["data"] == []
    with pytest.raises(ValueError, match="needs a column 'epoch'; it has loss"):
        training_curves(history[["loss"]])


def test_training_curves_of_a_captioner_show_scores_and_variety_apart():
    history = pd.DataFrame(
        [
            {"epoch": 0, "phase": "teacher_forcing", "dev/cider_d_characters": 0.1, "dev/distinct_captions": 0.2},
            {
                "epoch": 1,
                "phase": "teacher_forcing",
                "loss": 2.0,
                "captions_per_second": 80.0,
                "dev/repetition_characters": 0.5,
            },
        ]
    )
    figure = training_curves(history)
    drawn = through_json(figure)["data"]
    axes = {trace["name"]: trace["yaxis"] for trace in drawn}
    assert axes.keys() == {
        *("loss", "cider_d_characters", "distinct_captions", "repetition_characters", "captions_per_second"),
    }
    assert axes["distinct_captions"] == axes["repetition_characters"] != axes["cider_d_characters"]
    titles = [title.text for title in figure.layout.annotations]
    assert titles == ["loss", "on dev", "variety of captions on dev", "captions per second"]


def long_table() -> pd.DataFrame:
    cases = [("dev", "vit", 0.9), ("val", "vit", 0.3), ("val", "ensemble", 0.4)]
    return pd.DataFrame(
        [
            {"split": split, "member": member, "group": group, "direction": direction, "metric": metric}
            | {"value": value, "low": value - 0.1, "high": value + 0.2, "chance": 0.01}
            for split, member, value in cases
            for group in ("all", "vehicle")
            for direction in ("t2i", "i2t")
            for metric in ("map_at_10", "median_rank")
        ]
    )


def test_bars_carry_intervals_and_chance():
    drawn = through_json(leaderboard_bars(long_table()))["data"]
    bars = [trace for trace in drawn if trace["type"] == "bar"]
    assert [bar["name"] for bar in bars] == ["all", "vehicle"] * 2
    for bar in bars:
        assert bar["x"] == ["vit", "ensemble"]
        assert np.allclose(bar["y"], [30, 40])
        assert np.allclose(bar["error_y"]["array"], [20, 20])
        assert np.allclose(bar["error_y"]["arrayminus"], [10, 10])
    assert np.allclose([trace["y"] for trace in drawn if trace["name"] == "chance"], 1.0)


def test_bars_of_ranks_are_not_percent():
    bars = leaderboard_bars(long_table(), "median_rank", "dev")
    assert np.allclose(bars.data[0].y, [0.9])
    with pytest.raises(ValueError, match="no mrr of split 'val'"):
        leaderboard_bars(long_table(), "mrr")


def test_rank_histogram_counts_every_query():
    drawn = through_json(rank_histogram({"a": np.array([1, 1, 2, 3, 8]), "none": np.array([])}))["data"]
    assert drawn[0]["x"] == ["1", "2-3", "4-7", "8-15"]
    assert drawn[0]["y"] == [40.0, 40.0, 0.0, 20.0]
    assert sum(drawn[1]["y"]) == 0
