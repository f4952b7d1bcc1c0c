"""Sessions of a small Kedro project with two members, and the MLflow runs that they leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kedro.framework import project as kedro_project
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import AbstractRunner, ParallelRunner, SequentialRunner, ThreadRunner

from xmodal_kedro.tracking.runs import RUNS_VARIABLE
from xmodal_kedro.tracking.sink import metric_sink
from xmodal_kedro.tracking.store import TrackingError

TOY = Path(__file__).parent / "toy"


@dataclass
class Runs:
    """The runs of one session by member; the parent is ``""``."""

    client: Any
    by_member: dict[str, Any]

    def __getitem__(self, member: str) -> Any:
        return self.by_member[member]

    @property
    def statuses(self) -> dict[str, str]:
        return {member: run.info.status for member, run in self.by_member.items()}


@dataclass
class Toy:
    """The project: runs sessions in this process or in one of their own, and reads their runs."""

    path: Path

    def run(
        self,
        runner: AbstractRunner | None = None,
        env: str | None = None,
        pipeline: str | None = None,
        **behaviour: str,
    ) -> Runs:
        """Run a pipeline in this process and give its runs."""
        params = {"behaviour": {"fail": "", "wait": "", **behaviour}}
        with KedroSession.create(self.path, env=env, runtime_params=params) as session:
            session.run(pipeline_names=[pipeline] if pipeline else None, runner=runner)
        return self.runs(session.session_id)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start `kedro run` in a process group of its own, as a terminal does."""
        (self.path / "waiting").unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", "run", *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_until_it_waits(self, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 60
        while not (self.path / "waiting").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def runs(self, session: str | None = None) -> Runs:
        """The runs of a session, by default of the newest."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.path}/mlflow.db")
        experiment = client.get_experiment_by_name("toys")
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        session = session or found[0].data.tags["kedro.session"]
        chosen = [run for run in found if run.data.tags["kedro.session"] == session]
        return Runs(client, {run.data.tags.get("member", ""): run for run in chosen})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    path = tmp_path_factory.mktemp("tracking") / "toy"
    shutil.copytree(TOY, path, ignore=shutil.ignore_patterns("__pycache__"))
    before, package = os.environ.pop("MLFLOW_TRACKING_URI", None), kedro_project.PACKAGE_NAME
    bootstrap_project(path)
    yield Toy(path)
    sys.path.remove(str(path / "src"))
    if package is not None:
        kedro_project.configure_project(package)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="module")
def finished(toy: Toy) -> Runs:
    """The runs of a session in which all went well."""
    return toy.run()


def without(params: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in params.items() if name not in names}


def test_a_session_is_a_parent_with_a_child_per_member(finished: Runs) -> None:
    assert finished.statuses == {"": "FINISHED", "clip_a": "FINISHED", "clip_b": "FINISHED"}
    parent = finished[""]
    assert parent.data.tags["members"] == "clip_a, clip_b"
    for member in ("clip_a", "clip_b"):
        assert finished[member].info.run_name == member
        assert finished[member].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert finished[member].info.start_time >= parent.info.start_time
        assert finished[member].info.end_time <= parent.info.end_time
    assert parent.data.tags["kedro.pipelines"] == "default"
    assert parent.data.tags["git.commit"] == "unknown"
    assert parent.data.tags["mlflow.user"] != "unknown"
    assert RUNS_VARIABLE not in os.environ
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_parameters_line_up_on_the_compare_page(finished: Runs) -> None:
    a, b = finished["clip_a"].data.params, finished["clip_b"].data.params
    assert a == {
        "train.lr": "0.1",
        "train.steps": "40",
        "train.warmup": "none",
        "train.betas": "[0.9, 0.98]",
        "train.note": "short",
        "train.schedule": "cosine",
    }
    assert b.keys() == a.keys()
    assert without(b, "train.lr", "train.warmup") == without(a, "train.lr", "train.warmup")
    assert finished[""].data.params == {"seed": "7", "behaviour.fail": "", "behaviour.wait": ""}


def test_metrics_have_the_same_names_in_every_child_and_the_ensemble_is_in_the_parent(finished: Runs) -> None:
    a, b = finished["clip_a"].data.metrics, finished["clip_b"].data.metrics
    assert a.keys() == b.keys()
    assert a["val.vehicle.t2i.map_at_10"] == 0.1
    assert b["val.vehicle.t2i.map_at_10_high"] == 0.25
    assert a["val.t2i.R_at_1"] == 0.5
    assert finished[""].data.metrics["val.map_at_10"] == pytest.approx(0.3)
    assert "weights" not in finished[""].data.metrics


def test_curves_are_whole_and_say_where_they_broke(finished: Runs) -> None:
    run = finished["clip_a"]
    loss = finished.client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in loss] == [(step, 1 / (step + 1)) for step in range(40)]
    rate = finished.client.get_metric_history(run.info.run_id, "train/lr")
    assert [point.step for point in rate] == [step for step in range(40) if step != 30]
    assert run.data.tags["nonfinite.train/lr"] == "nan at step 30"


def test_versions_places_and_fingerprints_are_recorded_under_the_members_own_names(finished: Runs) -> None:
    session = finished[""].data.tags["kedro.session"]
    tags = finished["clip_a"].data.tags
    assert tags["version.checkpoint"] == tags["version.metrics"] == session
    assert tags["loaded_version.checkpoint"] == tags["loaded_version.pairs"] == session
    assert tags["checkpoint_path"] == f"data/clip_a/checkpoint.json/{session}/checkpoint.json"
    assert finished[""].data.tags["loaded_version.clip_b.embeddings"] == session
    assert finished[""].data.tags["fingerprint.pairs"] == tags["fingerprint.pairs"]
    (pairs,) = finished["clip_a"].inputs.dataset_inputs
    assert (pairs.dataset.name, pairs.dataset.digest) == ("pairs", tags["fingerprint.pairs"])


def test_files_of_a_dataset_are_artifacts(finished: Runs, toy: Toy) -> None:
    run = finished["clip_b"]
    assert [file.path for file in finished.client.list_artifacts(run.info.run_id, "reports")] == ["reports/metrics.csv"]
    assert (toy.path / "mlruns" / run.info.run_id / "artifacts/reports/metrics.csv").is_file()


def test_nodes_say_what_they_cost(finished: Runs) -> None:
    metrics = finished["clip_a"].data.metrics
    assert {name for name in metrics if name.startswith("node/train/")} >= {
        "node/train/seconds",
        "node/train/peak_memory_mb",
    }
    assert 0 < metrics["node/train/seconds"] < 30
    assert metrics["node/train/peak_memory_mb"] > 50


def test_longer_nodes_have_system_metrics(toy: Toy) -> None:
    runs = toy.run(pipeline="train", wait="train briefly")
    history = runs.client.get_metric_history(runs["clip_a"].info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in history][:2] == [0, 1]


def test_a_failing_node_fails_its_member_and_the_parent_only(toy: Toy) -> None:
    with pytest.raises(ValueError, match="told to fail"):
        toy.run(fail="embed 0.2")
    runs = toy.runs()
    # clip_a waits for its evaluation: it was stopped, and did not fail itself.
    assert runs.statuses == {"": "FAILED", "clip_a": "KILLED", "clip_b": "FAILED"}


def test_a_member_that_has_finished_stays_finished(toy: Toy) -> None:
    with pytest.raises(ValueError, match="told to fail"):
        toy.run(fail="ensemble")
    assert toy.runs().statuses == {"": "FAILED", "clip_a": "FINISHED", "clip_b": "FINISHED"}


def test_a_member_that_has_not_begun_has_no_run(toy: Toy) -> None:
    with pytest.raises(ValueError, match="told to fail"):
        toy.run(fail="train")
    runs = toy.runs()
    assert len(runs.by_member) == 2
    assert set(runs.statuses.values()) == {"FAILED"}


def test_an_input_that_cannot_be_loaded_fails_its_member(toy: Toy) -> None:
    with pytest.raises(Exception, match="Did not find any versions"):
        toy.run(pipeline="broken")
    assert toy.runs().statuses == {"": "FAILED", "clip_a": "FAILED"}


def test_sessions_of_one_process_do_not_mix_even_after_an_interruption(toy: Toy) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.run(fail="train interrupted")
    interrupted = toy.runs()
    assert set(interrupted.statuses.values()) == {"RUNNING"}  # until the process ends, or goes on with another session
    with metric_sink("clip_a"):
        following = toy.run()
    assert set(toy.runs(interrupted[""].data.tags["kedro.session"]).statuses.values()) == {"KILLED"}
    assert set(following.statuses.values()) == {"FINISHED"}
    assert len(following.by_member) == 3
    for member in ("clip_a", "clip_b"):
        history = following.client.get_metric_history(following[member].info.run_id, "train/loss")
        assert len(history) == 40


@pytest.mark.parametrize("runner", [ThreadRunner(), SequentialRunner(is_async=True), ParallelRunner()], ids=str)
def test_other_runners_leave_the_same_runs(toy: Toy, finished: Runs, runner: AbstractRunner) -> None:
    runs = toy.run(runner=runner)
    assert runs.statuses == finished.statuses
    for member, run in runs.by_member.items():
        expected = finished[member].data
        assert run.data.params == expected.params
        assert {key for key in run.data.metrics if not key.startswith("node/")} == {
            key for key in expected.metrics if not key.startswith("node/")
        }
        assert run.data.tags.keys() == expected.tags.keys()


def test_the_ensemble_alone_records_which_versions_it_combined(toy: Toy, finished: Runs) -> None:
    runs = toy.run(pipeline="ensemble")
    newest = max(path.name for path in (toy.path / "data/clip_a/embeddings.json").iterdir())
    assert runs.statuses == {"": "FINISHED"}
    assert runs[""].data.tags["loaded_version.clip_a.embeddings"] == newest
    assert runs[""].data.tags["version.ensemble_metrics"] != newest


def test_without_tracking_nothing_is_written(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{toy.path}/unwanted.db")
    with KedroSession.create(toy.path, env="off") as session:
        session.run(pipeline_names=["train"])
    assert not (toy.path / "unwanted.db").exists()


def test_misspelt_keys_are_named_before_the_first_node(toy: Toy) -> None:
    with pytest.raises(TrackingError, match=r"mlflow.yml, key 'enabledd'.*enabled, experiment, tracking_uri"):
        toy.run(env="odd")
    with pytest.raises(TrackingError, match=r"catalog entry 'odd', key 'metadata.mlflow.metric'.*metrics, artifact"):
        toy.run(pipeline="odd")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://user:secret@127.0.0.1:9", "refused"),
        ("sqlite:////proc/nowhere/mlflow.db", "No such file"),
        ("mlruns", "maintenance mode"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_clear_error(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        toy.run()
    message = str(caught.value)
    assert uri.replace("user:secret", "***") in message
    assert reason in message
    assert "secret" not in message
    assert "enabled: false" in message


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_process_leaves_killed_runs(toy: Toy, number: int, status: int) -> None:
    process = toy.start("--params=behaviour.wait=train", "--pipelines=train")
    toy.wait_until_it_waits(process)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == status, output
    runs = toy.runs()
    assert len(runs.by_member) == 2
    assert set(runs.statuses.values()) == {"KILLED"}
    assert "--params=behaviour.wait=train" in runs[""].data.tags["kedro.command"]
    assert "alembic" not in output
    assert "SystemMetricsMonitor" not in output


def test_hooks_import_no_mlflow() -> None:
    code = "import sys, xmodal_kedro.tracking.hook, xmodal_kedro.tracking.sink as s; s.metric_sink()(1, {'a': 1.0})"
    code += "; assert not {'mlflow', 'torch', 'pandas', 'psutil'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
