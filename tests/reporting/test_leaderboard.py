"""The leaderboard has a row per member and group, says its protocol, marks the best, and fits 100 columns."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from xmodal_kedro.reporting.leaderboard import leaderboard, render
from xmodal_kedro.retrieval.metrics import judge_both, metric_table
from xmodal_kedro.retrieval.scores import MatrixScores


def long_table(members=("vit", "resnet", "ensemble"), splits=("dev", "val"), groups=("vehicle", "pedestrian")):
    tables = []
    for split in splits:
        for place, member in enumerate(members):
            rng = np.random.default_rng(place)
            judged = {}
            for group, size in zip(groups, (20, 30), strict=False):
                truth = np.eye(size, size + 5, dtype=bool)
                scores = MatrixScores(truth * (0.5 + place) + rng.standard_normal(truth.shape))
                judged[group] = judge_both(scores, sparse.csr_array(truth))
            table = metric_table(judged, bootstrap=30)
            table.insert(0, "split", split)
            table.insert(0, "member", member)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def test_rows_and_values():
    metrics = long_table()
    board = leaderboard(metrics)
    assert board["split"].unique().tolist() == ["val"]
    assert board["group"].unique().tolist() == ["all", "vehicle", "pedestrian"]
    assert board.loc[board.group == "vehicle", "member"].tolist() == ["vit", "resnet", "ensemble", "chance"]
    row = board[(board.group == "pedestrian") & (board.member == "resnet")].iloc[0]
    assert (row.texts, row.images) == (30, 35)
    cell = metrics[
        (metrics.split == "val") & (metrics.group == "pedestrian") & (metrics.member == "resnet")
        & (metrics.direction == "i2t") & (metrics.metric == "mrr")
    ].iloc[0]  # fmt: skip
    assert (row["i2t.mrr"], row["i2t.mrr.low"], row["i2t.mrr.high"]) == (cell.value, cell.low, cell.high)
    by_lot = board[(board.group == "pedestrian") & (board.member == "chance")].iloc[0]
    assert by_lot["i2t.mrr"] == cell.chance
    assert np.isnan(by_lot["i2t.mrr.low"])
    assert by_lot["t2i.recall_at_10"] == pytest.approx(10 / 35)
    assert leaderboard(metrics, "dev")["split"].unique().tolist() == ["dev"]


def test_text_fits_and_marks_the_best():
    board = leaderboard(long_table())
    text = render(board)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert "val, vehicle: 20 texts, 25 images" in lines
    ensemble = next(line for line in lines if line.startswith("ensemble"))
    assert ensemble.count("*") == 4  # the strongest signal wins every column
    chance = [line for line in lines if line.startswith("chance")]
    assert len(chance) == 3
    assert not any("*" in line for line in chance)
    row = board[(board.group == "all") & (board.member == "ensemble")].iloc[0]
    name = "t2i.map_at_10"
    assert f"{100 * row[name]:.1f} [{100 * row[name + '.low']:.1f}, {100 * row[name + '.high']:.1f}]*" in ensemble


def test_ranks_are_not_percent_and_low_is_best():
    board = leaderboard(long_table(groups=("vehicle",)))
    text = render(board, ["t2i.median_rank"])
    best = board.loc[board.member != "chance", "t2i.median_rank"].min()
    assert f"{best:.1f} [" in text
    starred = [line.split()[0] for line in text.splitlines() if line.endswith("*")]
    winners = board.loc[(board.member != "chance") & (board["t2i.median_rank"] == best), "member"].tolist()
    assert starred == winners


def test_reads_back_from_csv(tmp_path):
    board = leaderboard(long_table(splits=("dev",)))
    board.to_csv(tmp_path / "board.csv", index=False)
    assert render(pd.read_csv(tmp_path / "board.csv")) == render(board)


def test_long_names_still_fit():
    metrics = long_table(members=("chinese-clip-huge-with-adapters-on-both-towers", "ensemble"), groups=("all",))
    assert max(map(len, render(leaderboard(metrics)).splitlines())) <= 100


def test_what_is_missing_is_named():
    metrics = long_table(splits=("dev",))
    with pytest.raises(ValueError, match="no metrics of split 'val'; there are: dev"):
        leaderboard(metrics, "val")
    with pytest.raises(ValueError, match="occurs twice"):
        leaderboard(pd.concat([metrics, metrics]))
    with pytest.raises(ValueError, match=r"no column t2i.map_at_7"):
        render(leaderboard(metrics), ["t2i.map_at_7"])
