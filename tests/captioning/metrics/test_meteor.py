"""METEOR is the program's own number where Java and the program are, and a reason everywhere else."""

import json
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from tests.conftest import SHARED
from xmodal_kedro.captioning.metrics import evaluate, tokenisers
from xmodal_kedro.captioning.metrics.meteor import MeteorError, meteor, meteor_unavailable

FIXTURE = SHARED / "metric_fixtures" / "published_scores.json"
REASON = meteor_unavailable()


def test_no_java_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeteorError, match="no `java` on the PATH"):
        meteor([["a"]], [[["a"]]])


def test_no_program_is_said(monkeypatch, tmp_path):
    stand_in(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setattr(tokenisers.importlib.util, "find_spec", lambda name: None)
    assert "pycocoevalcap" in meteor_unavailable()


def test_its_last_words_are_passed_on(monkeypatch, tmp_path):
    stand_in(tmp_path, monkeypatch, "echo 'no memory left' >&2; exit 1")
    jar(tmp_path, monkeypatch)
    with pytest.raises(MeteorError, match="stopped: no memory left"):
        meteor([["a"]] * 50_000, [[["a"]]] * 50_000)


def test_protocol(monkeypatch, tmp_path):
    """A stand-in that notes what it is sent: one line per image, then all statistics, then n + 1 numbers."""
    script = f"""
    while IFS= read -r line; do
      echo "$line" >> {tmp_path}/sent
      case "$line" in
        SCORE*) echo "statistics $((++n))" ;;
        *) echo 0.25; echo 0.5; echo 0.3125 ;;
      esac
    done"""
    stand_in(tmp_path, monkeypatch, script)
    jar(tmp_path, monkeypatch)
    scores = meteor([["草", "地"], []], [[["狗"], ["a|||b", "c"]], [["d"]]])
    assert (tmp_path / "sent").read_text(encoding="utf-8").splitlines() == [
        "SCORE ||| 狗 ||| ab c ||| 草 地",
        "SCORE ||| d ||| ",
        "EVAL ||| statistics 1 ||| statistics 2",
    ]
    assert scores.each.tolist() == [0.25, 0.5]
    assert scores.value == 0.3125
    assert np.isnan(scores.interval()).all()  # its counts are the program's own


def test_the_program_is_started_once_and_anew_after_it_stopped(monkeypatch, tmp_path):
    """It loads data for seconds; one that stopped in the middle must not answer the next question."""
    script = f"""
    echo >> {tmp_path}/starts
    while IFS= read -r line; do
      case "$line" in
        *stop*) exit 1 ;;
        SCORE*) echo s ;;
        *) echo 0.5; echo 0.5 ;;
      esac
    done"""
    stand_in(tmp_path, monkeypatch, script)
    jar(tmp_path, monkeypatch)
    for _ in range(3):
        assert meteor([["a"]], [[["a"]]]).value == 0.5
    assert (tmp_path / "starts").read_text() == "\n"
    with pytest.raises(MeteorError, match="stopped: it gave no reason"):
        meteor([["stop"]], [[["a"]]])
    assert meteor([["a"]], [[["a"]]]).value == 0.5
    assert (tmp_path / "starts").read_text() == "\n\n"


def stand_in(folder, monkeypatch, script):
    """A `java` that does what the script says."""
    program = folder / "java"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def jar(folder, monkeypatch):
    """An installed package that holds the program."""
    (folder / "meteor").mkdir()
    (folder / "meteor" / "meteor-1.5.jar").touch()
    spec = ModuleSpec("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(tokenisers.importlib.util, "find_spec", lambda name: spec)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"{FIXTURE} is not here")
def test_published():
    facts = json.loads(FIXTURE.read_text())["clipscore_good"]
    scores = evaluate(facts["hypotheses"], facts["references"], ["meteor_ptb"])["meteor_ptb"]
    assert scores.value == pytest.approx(facts["published"]["METEOR"], abs=5.1e-5)
    assert len(scores.each) == 2
    assert all(0 < score < 1 for score in scores.each)
