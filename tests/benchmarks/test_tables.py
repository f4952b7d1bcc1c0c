"""The page says what was measured and on what, names every missed goal with its gap, and claims nothing else."""

import json

import pytest

from benchmarks import tables
from benchmarks.contest import Goal, compete, machine
from tests.benchmarks import contests as tiny


@pytest.fixture
def result():
    sides = {"ours": tiny.fast, "peer": tiny.slow, "other": tiny.slow}
    goals = {"peer": Goal(ratio=2.0), "other": Goal(ratio=1e9)}
    case = compete("a sum", tiny.numbers, sides, tiny.same, ("a pause", tiny.nothing), goals, memory=False)
    return {"name": "ranks", "machine": machine(), "quick": False, "load": 0.1, "passed": False, "cases": [case]}


def test_what_was_not_measured_is_not_claimed(result):
    page = tables.page({"ranks": result})
    assert page.count("Not measured.") == len(tables.CONTESTS) - 1
    assert machine()["cpu"] in page
    assert "Quick sizes" not in page
    assert "Not idle" not in page
    shaky = tables.page({"ranks": result | {"quick": True, "load": 3.2}})
    assert "**Quick sizes**" in shaky
    assert "3.2 cores were busy" in shaky
    assert "No case of it runs on this machine" in tables.page({"full_size": result | {"cases": []}})


def test_missed_goals_are_named_with_gap_and_reason(result, monkeypatch):
    case = result["cases"][0]
    page = tables.page({"ranks": result})
    assert "ratio >= 2: met" in page
    assert "ratio >= 1e+09: **missed**" in page
    gap = f"time of other over ours is {case['peers']['other']['ratio']:.3g}, the goal 1e+09. Not explained yet."
    assert page.count("- `ranks`") == 1
    assert gap in page
    monkeypatch.setattr(tables, "REASONS", {("ranks", "a sum", "other"): "Nobody is that fast."})
    assert "the goal 1e+09. Nobody is that fast." in tables.page({"ranks": result})


def test_reasons_do_not_outlive_their_goals(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "performance.md")
    (tmp_path / "ranks.json").write_text(json.dumps(result))
    (tmp_path / "study.json").write_text("{}")  # no contest
    monkeypatch.setattr(
        tables, "REASONS", {("ranks", "", "other"): "Nobody is.", ("fuse", "", ""): "Not measured here."}
    )
    assert tables.main() == 0
    assert "Nobody is." in (tmp_path / "performance.md").read_text()
    monkeypatch.setattr(tables, "REASONS", {("ranks", "", "time of peer"): "It was."})
    assert tables.main() == 1
    assert "remove it" in capsys.readouterr().err
