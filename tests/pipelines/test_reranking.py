"""Re-ranking by commands, in a copy of the finished project: in the ensemble and for new data, and refused in time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import run_kedro, small_parameters

ADAPTION = {"ensemble.rerank.method": "adaption", "ensemble.rerank.member": "vit", "ensemble.rerank.top_k": 8}


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("reranked") / "project"
    shutil.copytree(finished_project, copy)
    return copy


def latest(project: Path, dataset: str) -> Path:
    versions = sorted((project / "data").glob(f"{dataset}/20*"))
    return versions[-1] / Path(dataset).name


def test_the_ensemble_re_ranks_and_shows_what_that_changed(project: Path) -> None:
    before = pd.read_parquet(latest(project, "07_model_output/ensemble/ranking.parquet"))
    result = run_kedro(project, "run", "--pipelines=ensemble", small_parameters(**ADAPTION))
    table = pd.read_parquet(latest(project, "07_model_output/ensemble/reranking.parquet"))
    after = pd.read_parquet(latest(project, "07_model_output/ensemble/ranking.parquet"))
    keys = ["split", "group", "direction", "query_id"]
    pd.testing.assert_frame_equal(before.query("direction == 'i2t'"), after.query("direction == 'i2t'"))
    lists = [ranking.query("direction == 't2i'").groupby(keys)["gallery_id"].agg(list) for ranking in (before, after)]
    assert sum(a != b for a, b in zip(*lists, strict=True)) > 0.5 * len(lists[0])
    assert all(set(a[:8]) == set(b[:8]) and a[8:] == b[8:] for a, b in zip(*lists, strict=True))
    first = table[table["rank"] == 1].set_index(["split", "group", "query_id"])["gallery_id"]
    found = after.query("direction == 't2i' and rank == 1").set_index(["split", "group", "query_id"])["gallery_id"]
    assert (first == found.loc[first.index]).all()

    board = pd.read_csv(latest(project, "08_reporting/leaderboard.csv"))
    assert board.query("group == 'all'")["member"].tolist() == ["vit", "resnet", "fused", "ensemble", "chance"]
    rows = board.query("group == 'all'").set_index("member")
    assert rows.loc["fused", "t2i.map_at_10"] != rows.loc["ensemble", "t2i.map_at_10"]
    assert rows.loc["fused", "i2t.map_at_10"] == rows.loc["ensemble", "i2t.map_at_10"]
    assert "and over the mixture before re-ranking" in result.stdout
    assert "t2i map_at_10     ensemble - fused:" in result.stdout
    assert "reranking" in result.stdout.split("Written by this run:")[1]
    recalls = pd.read_csv(latest(project, "08_reporting/recalls.csv")).set_index("direction")
    np.testing.assert_allclose(recalls.loc["text_to_image", "R@1"], rows.loc["ensemble", "t2i.recall_at_1"], atol=1e-5)
    entries = json.loads(latest(project, "08_reporting/submission/submission.json").read_text())["results"]
    of_test = after.query("split == 'test' and direction == 't2i'").sort_values("rank", kind="stable")
    names = of_test.groupby("query_id")["gallery_id"].agg(lambda ids: tuple(Path(i).name for i in ids))
    assert {tuple(entry["image_names"]) for entry in entries} == set(names)


def test_new_data_is_re_ranked_too(project: Path, tmp_path: Path) -> None:
    test = project / "data/01_raw/synthetic_traffic/test"
    (tmp_path / "test/test_images").mkdir(parents=True)
    for image in sorted((test / "test_images").glob("vehicle_*.jpg"))[:12]:
        shutil.copy(image, tmp_path / "test/test_images")
    (tmp_path / "test/test_text.txt").write_text("This is a white Audi Sedan.\nA red Yutong Bus.\n")
    run_kedro(project, "run", "--pipelines=predict", small_parameters(**ADAPTION, **{"predict.root": tmp_path}))
    table = pd.read_parquet(latest(project, "07_model_output/predict/reranking.parquet"))
    assert table.groupby("query_id").size().tolist() == [8, 8]
    ranking = pd.read_parquet(latest(project, "07_model_output/predict/ranking.parquet"))
    best = ranking.query("direction == 't2i' and rank <= 8").set_index(["query_id", "rank"])["gallery_id"]
    assert best.to_dict() == table.set_index(["query_id", "rank"])["gallery_id"].to_dict()


def test_a_member_that_cannot_match_is_refused_before_any_node(project: Path) -> None:
    before = sorted((project / "data").rglob("*.parquet"))
    wrong = small_parameters(**ADAPTION | {"ensemble.rerank.method": "itm"})
    result = run_kedro(project, "run", wrong, check=False)
    assert result.returncode != 0
    assert (
        "ensemble.rerank.member is 'vit', whose backbone 'open_clip' has no image-text matching head" in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert sorted((project / "data").rglob("*.parquet")) == before
