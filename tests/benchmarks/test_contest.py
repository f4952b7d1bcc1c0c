"""A contest compares outputs first, judges every goal, marks what ran once, and measures memory in other processes."""

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import contest
from benchmarks.contest import Goal, compete, peak_mb
from tests.benchmarks import contests as tiny

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
LIMIT = ("a pause", tiny.nothing)


def case(goals=None, **options):
    options = {"memory": False, "repetitions": 3} | options
    sides = options.pop("sides", {"ours": tiny.fast, "peer": tiny.slow})
    return compete("a sum", tiny.numbers, sides, options.pop("agree", tiny.same), LIMIT, goals or {}, **options)


def test_a_goal_decides():
    assert case({"peer": Goal(ratio=2.0)})["passed"]
    missed = case({"peer": Goal(ratio=1e9)})
    assert not missed["passed"]
    (goal,) = missed["goals_met"]
    assert (goal["what"], goal["goal"], goal["met"]) == ("time of peer over ours", 1e9, False)
    assert (
        goal["found"]
        == missed["peers"]["peer"]["ratio"]
        == pytest.approx(missed["peers"]["peer"]["seconds"] / missed["ours"]["seconds"])
    )


def test_without_goals_it_only_reports():
    found = case(sides={"ours": tiny.slow, "peer": tiny.fast})
    assert found["passed"]
    assert found["goals_met"] == []
    assert found["peers"]["peer"]["ratio"] < 1.0
    assert found["peers"]["peer"]["agrees"] == "the same sum"


def test_share_of_the_limit():
    # the limit pauses for a millisecond, we for twenty
    slow = {"ours": tiny.slow}
    assert not case(sides=slow, share=0.9)["passed"]
    found = case(sides=slow, share=0.001)
    assert found["passed"]
    assert found["limit"]["share"] == pytest.approx(found["limit"]["seconds"] / found["ours"]["seconds"])


@pytest.mark.parametrize("flags", [[], ["avx512_bf16"]])
def test_goals_that_rest_on_bf16_need_a_cpu_with_it(flags, monkeypatch):
    monkeypatch.setattr(contest, "machine", lambda: {"flags": flags})
    found = case({"peer": Goal(ratio=1e9)}, share=2.0, bf16=True)
    assert found["passed"] == (not flags)
    assert len(found["goals_met"]) == 2 * len(flags)
    assert not case({"peer": Goal(ratio=1e9)})["passed"]  # others hold everywhere


def test_other_outputs_end_the_contest():
    with pytest.raises(AssertionError, match="peer says"):
        case(sides={"ours": tiny.fast, "peer": tiny.wrong})


def test_whoever_is_too_slow_runs_once(monkeypatch):
    monkeypatch.setattr(contest, "SLOW", 0.01)
    calls = []

    def counted(name, run, given):
        calls.append(name)
        return run(given)

    sides = {"ours": partial(counted, "ours", tiny.fast), "peer": partial(counted, "peer", tiny.slow)}
    found = case(sides=sides, repetitions=4)
    assert (calls.count("ours"), calls.count("peer")) == (5, 1)
    assert found["peers"]["peer"]["once"]
    calls.clear()
    case(sides=sides, repetitions=4, small=tiny.few)
    assert (calls.count("ours"), calls.count("peer")) == (6, 2)  # what the first call costs is not timed


@linux
def test_memory_is_measured_elsewhere_and_judged():
    sides = {"ours": tiny.fast, "peer": tiny.hungry}
    found = case({"peer": Goal(memory=0.2)}, sides=sides, memory=True, small=tiny.few)
    assert 60 < found["peers"]["peer"]["peak_mb"] < 90
    assert found["ours"]["peak_mb"] < 10
    assert found["passed"]
    turned = {"ours": tiny.hungry, "peer": tiny.fast}
    found = case({"peer": Goal(memory=1.0)}, sides=turned, memory=True, small=tiny.few, peak_goal_mb=10)
    assert [goal["met"] for goal in found["goals_met"]] == [False, False]


@linux
def test_a_process_of_its_own():
    assert peak_mb(tiny.numbers, tiny.elsewhere) > 60
    with pytest.raises(AssertionError):
        tiny.elsewhere(tiny.numbers())


@linux
def test_a_side_that_fails_elsewhere_is_named():
    with pytest.raises(RuntimeError, match="failing"):
        peak_mb(tiny.numbers, tiny.failing)


def test_results_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contest, "RESULTS", tmp_path / "results")
    met, missed = case({"peer": Goal(ratio=2.0)}), case({"peer": Goal(ratio=1e9)})
    assert contest.write("sums", [met])
    assert "goals met" in capsys.readouterr().out
    assert not contest.write("sums", [met, missed])
    assert "GOAL MISSED: time of peer over ours" in capsys.readouterr().out
    document = json.loads((tmp_path / "results" / "sums.json").read_text())
    assert (document["name"], document["passed"], len(document["cases"])) == ("sums", False, 2)
    assert document["machine"]["cores"] >= 1


def test_a_side_that_is_given_a_part_is_judged_by_its_rate():
    sides, limit = {"ours": tiny.fast, "peer": tiny.slow}, ("a pause", tiny.nothing)
    case = compete("a sum", tiny.numbers, sides, tiny.same, limit, {}, memory=False, parts={"peer": 0.001})
    peer = case["peers"]["peer"]
    assert peer["seconds"] >= 20  # it sleeps for 20 ms
    assert peer["ratio"] == pytest.approx(peer["seconds"] / case["ours"]["seconds"])
    assert case["ours"]["seconds"] < 1
    assert not peer["once"]
