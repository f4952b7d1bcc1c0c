"""Reported numbers reach the right run in batches, without tracking nowhere, and never stop what reports them."""

import json
import threading
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from xmodal_kedro.tracking import outage, sink
from xmodal_kedro.tracking.runs import RUNS_VARIABLE
from xmodal_kedro.tracking.sink import current_run, metric_sink


class Recorder:
    """Stands for MLflow's client: keeps what it is given, or refuses it."""

    batches: list[tuple[str, list[tuple[str, int, float]], dict[str, str]]] = []
    refuses: int | None = None

    def __init__(self, tracking_uri: str):
        assert tracking_uri == "sqlite:///somewhere.db"

    def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
        if Recorder.refuses is not None:
            raise MlflowException("the server is away", Recorder.refuses)
        points = [(metric.key, metric.step, metric.value) for metric in metrics]
        Recorder.batches.append((run_id, points, {tag.key: tag.value for tag in tags}))


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(mlflow, "MlflowClient", Recorder)
    monkeypatch.setattr(Recorder, "batches", [])
    monkeypatch.setattr(Recorder, "refuses", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///somewhere.db")
    monkeypatch.setenv(RUNS_VARIABLE, json.dumps({"": "parent", "clip_a": "child"}))
    clock = Clock()
    monkeypatch.setattr(sink, "time", clock)
    monkeypatch.setattr(outage, "time", clock)
    outage.store_outage.forget()
    return clock


def points() -> list[tuple[str, int, float]]:
    return [point for _, batch, _ in Recorder.batches for point in batch]


def test_numbers_are_written_once_a_second_and_the_rest_at_the_end(clock: Clock) -> None:
    with metric_sink("clip_a") as report:
        for step in range(10):
            report(step, {"loss": float(step)})
            clock.now += 0.3
        assert [len(batch) for _, batch, _ in Recorder.batches] == [1, 4, 4]
    assert points() == [("loss", step, float(step)) for step in range(10)]
    assert {run_id for run_id, _, _ in Recorder.batches} == {"child"}


def test_a_large_backlog_is_written_in_batches_that_mlflow_takes(clock: Clock) -> None:
    with metric_sink() as report:
        for step in range(1251):
            report(step, {"a": 1.0, "b": 2.0})
    assert [len(batch) for _, batch, _ in Recorder.batches] == [2, 1000, 1000, 500]
    assert len(set(points())) == 2502
    assert Recorder.batches[0][0] == "parent"


def test_the_nodes_run_comes_before_the_environment_and_threads_name_their_member(clock: Clock) -> None:
    token = current_run.set("node")
    try:
        with metric_sink("clip_a") as report:
            report(1, {"loss": 1.0})
        thread = threading.Thread(target=lambda: metric_sink("clip_a")(1, {"loss": 1.0}))
        thread.start()
        thread.join()
    finally:
        current_run.reset(token)
    assert [run_id for run_id, _, _ in Recorder.batches] == ["node", "child"]


def test_without_tracking_reports_go_nowhere(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNS_VARIABLE)
    with metric_sink("clip_a") as report:
        report(1, {"loss": 1.0})
    assert Recorder.batches == []


def test_numbers_that_are_not_finite_become_one_tag(clock: Clock) -> None:
    with metric_sink() as report:
        for step, value in enumerate([1.0, float("inf"), float("nan"), 2.0]):
            report(step, {"loss": value})
    assert points() == [("loss", 0, 1.0), ("loss", 3, 2.0)]
    assert [tags for _, _, tags in Recorder.batches] == [{}, {"nonfinite.loss": "inf at step 1"}]


def test_a_store_that_is_away_costs_warnings_and_its_numbers_wait(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with metric_sink() as report:
        Recorder.refuses = INTERNAL_ERROR
        for step in range(50):
            report(step, {"loss": 1.0})
            clock.now += 1.0
        Recorder.refuses = None
        assert len(caplog.messages) == 1
        assert "the server is away" in caplog.messages[0]
        for step in range(50, 80):
            report(step, {"loss": 1.0})
            clock.now += 1.0
        assert [step for _, step, _ in points()] == list(range(80))


def test_numbers_that_were_never_taken_are_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with metric_sink() as report:
        Recorder.refuses = INTERNAL_ERROR
        report(0, {"a": 1.0, "b": 1.0})
    assert caplog.messages[-1] == "MLflow lacks the last 2 reported numbers."


def test_a_run_that_takes_no_more_is_not_asked_again(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with metric_sink() as report:
        Recorder.refuses = INVALID_PARAMETER_VALUE
        for step in range(5):
            report(step, {"a": 1.0})
            clock.now += 100.0
    assert [message for message in caplog.messages if "did not take" in message] == [
        "MLflow did not take reported numbers: the server is away"
    ]


def test_one_element_tensors_are_numbers(clock: Clock) -> None:
    import torch

    with metric_sink() as report:
        report(3, {"loss": torch.tensor(0.5)})
    assert points() == [("loss", 3, 0.5)]
