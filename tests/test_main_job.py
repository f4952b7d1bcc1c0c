"""The main job by its commands, in a project of its own: what it prints, writes, versions, and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import make_project, run_kedro, small_parameters

MEMBERS = ["resnet", "vit"]


def versions(project: Path, dataset: str) -> list[Path]:
    """Version folders of a dataset, oldest first."""
    (folder,) = (path for path in (project / "data").rglob(dataset) if path.is_dir() and any(path.glob("20*")))
    return sorted(folder.glob("20*"))


def latest(project: Path, dataset: str) -> Path:
    return versions(project, dataset)[-1] / Path(dataset).name


def newest_metrics(project: Path, member: str) -> pd.DataFrame:
    return pd.read_csv(latest(project, f"{member}/metrics.csv"))


def on_val(metrics: pd.DataFrame, metric: str, group: str = "all", direction: str = "t2i") -> pd.Series:
    chosen = metrics.query("split == 'val' and group == @group and direction == @direction and metric == @metric")
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_members_learn(finished_project: Path) -> None:
    for member in MEMBERS:
        row = on_val(newest_metrics(finished_project, member), "map_at_10", "vehicle")
        assert row["low"] > row["chance"], f"{member} is not above chance: {row.to_dict()}"


def test_results_are_told_apart_by_attribute(finished_project: Path) -> None:
    for member in MEMBERS:
        table = pd.read_csv(latest(finished_project, f"{member}/attribute_metrics.csv"))
        genders = table.query("split == 'val' and attribute == 'gender' and metric == 'recall_at_10'")
        assert set(genders["label"]) == {"female", "male"}  # so few vehicles have no colour that 20 share
        whole = on_val(newest_metrics(finished_project, member), "recall_at_10", "pedestrian")
        assert genders["n_queries"].sum() == whole["n_queries"]  # each text has one
        assert (genders["value"] * genders["n_queries"]).sum() == pytest.approx(whole["value"] * whole["n_queries"])


def test_weights_come_from_dev_and_val_is_reported_with_intervals(finished_project: Path) -> None:
    fusion = json.loads(latest(finished_project, "ensemble/fusion.json").read_text())
    assert fusion["split"] == "dev"
    assert sorted(fusion["weights"]) == MEMBERS
    assert sum(fusion["weights"].values()) == pytest.approx(1.0)
    row = on_val(newest_metrics(finished_project, "ensemble"), "map_at_10")
    assert row["low"] < row["value"] < row["high"]
    comparison = pd.read_csv(latest(finished_project, "ensemble/comparison.csv"))
    assert set(comparison["split"]) == {"val"}
    assert {"member", "difference", "low", "high", "p"} <= set(comparison.columns)


def test_the_submission_answers_every_query_in_order(finished_project: Path) -> None:
    raw = finished_project / "data/01_raw/synthetic_traffic/test"
    queries = (raw / "test_text.txt").read_text().splitlines()
    results = json.loads(latest(finished_project, "submission/submission.json").read_text())["results"]
    assert [entry["text"] for entry in results] == queries
    for entry in results:
        assert len(set(entry["image_names"])) == 10
        assert all((raw / "test_images" / name).is_file() for name in entry["image_names"])
    vehicles = [e for e in results if e["image_names"][0].startswith("vehicle_")]
    assert all(name.startswith("vehicle_") for entry in vehicles for name in entry["image_names"])


def test_the_matching_is_one_to_one(finished_project: Path) -> None:
    matching = pd.read_parquet(latest(finished_project, "ensemble/matching.parquet"))
    for _, rows in matching.groupby(["split", "group"]):
        assert rows["text_id"].is_unique
        assert rows["image_id"].is_unique
    result = pd.read_csv(latest(finished_project, "submission/result.csv"))
    assert list(result.columns) == ["image_name"]
    assert len(result) == len(
        (finished_project / "data/01_raw/synthetic_traffic/test/test_text.txt").read_text().splitlines()
    )


def test_the_run_ends_with_a_leaderboard_and_places(finished_project: Path) -> None:
    output = (finished_project / "output.txt").read_text()
    for word in ("ensemble", *MEMBERS, "chance", "Written by this run", "leaderboard", "checkpoint"):
        assert word in output
    assert "Warning" not in output
    assert "Traceback" not in output


def test_every_member_is_a_run_with_the_same_parameter_names(finished_project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished_project / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    children = {run.data.tags["member"]: run for run in runs if "member" in run.data.tags}
    assert sorted(children) == MEMBERS
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = [set(children[member].data.params) for member in MEMBERS]
    common = names[0] & names[1]
    assert {"train.lr", "train.batch_size", "backbone.name"} <= common
    for member in MEMBERS:
        assert children[member].data.metrics["val.all.t2i.map_at_10"] > 0
        assert len(client.get_metric_history(children[member].info.run_id, "loss")) > 3


def test_a_second_run_keeps_the_old_versions_and_load_versions_reproduces(finished_project: Path) -> None:
    project = finished_project
    before = {member: versions(project, f"{member}/checkpoint") for member in MEMBERS}
    (old_metrics,) = versions(project, "ensemble/metrics.csv")
    old = (old_metrics / "metrics.csv").read_bytes()
    again = small_parameters(**{"vit.train.seed": 1, "vit.train.epochs": 1})
    run_kedro(project, "run", again, "--namespaces=vit")
    assert versions(project, "vit/checkpoint")[:-1] == before["vit"]
    assert versions(project, "resnet/checkpoint") == before["resnet"]

    run_kedro(project, "run", "--pipelines=ensemble", small_parameters())
    assert latest(project, "ensemble/metrics.csv").read_bytes() != old
    fusion = json.loads(latest(project, "ensemble/fusion.json").read_text())
    assert sorted(fusion["members"]) == MEMBERS

    version = before["vit"][0].name
    pinned = ",".join(f"vit.{side}_embeddings:{version}" for side in ("image", "text"))
    run_kedro(project, "run", "--pipelines=ensemble", f"--load-versions={pinned}", small_parameters())
    assert latest(project, "ensemble/metrics.csv").read_bytes() == old
    assert combined_versions(project)["vit.image_embeddings"] == version
    board = pd.read_csv(latest(project, "08_reporting/leaderboard.csv")).set_index(["group", "member"])
    first = on_val(pd.read_csv(versions(project, "vit/metrics.csv")[0] / "metrics.csv"), "map_at_10")
    assert board.loc[("all", "vit"), "t2i.map_at_10"] == first["value"]


def test_a_misspelt_dataset_of_load_versions_is_named(finished_project: Path) -> None:
    wrong = "--load-versions=vti.image_embeddings:2026-01-01T00.00.00.000Z"
    result = run_kedro(finished_project, "run", "--pipelines=ensemble", wrong, check=False)
    assert result.returncode != 0
    assert "did you mean 'vit.image_embeddings'?" in result.stdout + result.stderr


def combined_versions(project: Path) -> dict[str, str]:
    """Which versions the last run says it loaded."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    tags = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0].data.tags
    return {
        key.removeprefix("loaded_version."): value for key, value in tags.items() if key.startswith("loaded_version.")
    }


@pytest.mark.parametrize(
    ("misspelt", "message"),
    [
        ("vit.train.lrr=0.1", r"vit\.train\.lrr: unknown key, did you mean 'lr'"),
        ("vit.backbone.architecture.vision_cfg.widht=96", r"- vit\.backbone\.architecture is no model .*'widht'"),
    ],
)
def test_a_misspelt_key_fails_before_any_node(misspelt: str, message: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    result = run_kedro(project, "run", f"--params={misspelt}", check=False)
    assert result.returncode != 0
    assert re.search(message, result.stdout + result.stderr)
    assert not (project / "mlflow.db").exists()
    assert not (project / "data/01_raw").exists()


def test_new_data_is_ranked_by_the_saved_members(finished_project: Path, tmp_path: Path) -> None:
    test = finished_project / "data/01_raw/synthetic_traffic/test"
    new = tmp_path / "new"
    (new / "test/test_images").mkdir(parents=True)
    for image in sorted((test / "test_images").glob("vehicle_*.jpg"))[:12]:
        (new / "test/test_images" / image.name).write_bytes(image.read_bytes())
    (new / "test/test_images/vehicle_9.jpg").write_text("<html>not found</html>")
    (new / "test/test_text.txt").write_text("This is a white Audi Sedan.\nA red Yutong Bus.\n")
    before = {member: versions(finished_project, f"{member}/checkpoint") for member in MEMBERS}
    parameters = small_parameters(**{"predict.root": new, "predict.max_bad_share": 0.2})
    result = run_kedro(finished_project, "run", "--pipelines=predict", parameters)
    assert "Set aside: 1 x" in result.stderr
    assert before == {member: versions(finished_project, f"{member}/checkpoint") for member in MEMBERS}
    submission = json.loads(latest(finished_project, "predict/submission.json").read_text())
    assert [entry["text"] for entry in submission["results"]] == ["This is a white Audi Sedan.", "A red Yutong Bus."]
    assert all(len(set(entry["image_names"])) == 10 for entry in submission["results"])
    matched = pd.read_csv(latest(finished_project, "predict/result.csv"))["image_name"]
    assert matched.is_unique
    assert len(matched) == 2


def test_the_old_spelling_of_pipelines_still_works(finished_project: Path) -> None:
    result = run_kedro(finished_project, "run", "--pipeline=evaluate", "--namespaces=resnet", small_parameters())
    assert "resnet.evaluate_member" in result.stdout + result.stderr
