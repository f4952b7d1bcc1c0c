"""The command runs each contest in a process of its own, and its exit code says what happened."""

import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import isolated
from benchmarks.contest import Options
from tests.benchmarks import contests as tiny


def run(monkeypatch, *arguments, codes=None):
    asked = []

    def in_process(name, options, place):
        asked.append((name, options))
        return (codes or {}).get(name, isolated.MET)

    monkeypatch.setattr(command, "in_process", in_process)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    for variable in command.THREADS:
        monkeypatch.setenv(variable, "1")
    return command.main(), asked


def test_no_name_runs_all(monkeypatch):
    code, asked = run(monkeypatch, "--quick")
    assert code == isolated.MET
    assert asked == [(name, Options(quick=True)) for name in command.CONTESTS]


def test_exit_code_and_what_it_means(monkeypatch, capsys):
    assert run(monkeypatch, "ranks", "fuse", codes={"fuse": isolated.MISSED})[0] == 1
    assert capsys.readouterr().out == "missed a goal: fuse\n"
    assert run(monkeypatch, "ranks", "fuse", codes={"fuse": isolated.MISSED, "ranks": isolated.BROKEN})[0] == 2
    assert "could not be run: ranks" in capsys.readouterr().out


def test_unknown_names_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "rank")
    assert "no contest 'rank'; there are: startup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("no usearch", name="usearch.index"),
            "needs the package of 'usearch': run `uv sync --group",
        ),
        (ModuleNotFoundError("ours", name="xmodal_kedro.gone"), "ours"),
        (ValueError("anything else"), "anything else"),
    ],
)
def test_what_cannot_be_run_says_so(error, said, monkeypatch, capsys):
    def missing(name):
        raise error

    monkeypatch.setattr(isolated.importlib, "import_module", missing)
    with pytest.raises(SystemExit) as left:
        isolated.contest("search", Options())
    assert left.value.code == isolated.BROKEN
    told = capsys.readouterr().err
    assert said in told
    assert ("uv sync" in told) == ("usearch" in told)


def test_processes_report_their_ends(monkeypatch):
    found = {}
    for name, end in tiny.ENDS.items():
        monkeypatch.setattr(isolated, "contest", end)
        found[name] = isolated.in_process(name, Options(), "1 of 1")
    assert found == {
        "met": isolated.MET,
        "missed": isolated.MISSED,
        "broken": isolated.BROKEN,
        "uncaught": isolated.BROKEN,
        "killed": isolated.BROKEN,
    }
