"""A normalisation with a bank of train, by commands: embedded by evaluate, searched on dev, carried to new data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import run_kedro, small_parameters
from xmodal_kedro.pipelines.predict.pipeline import create_pipeline as predict
from xmodal_kedro.retrieval.embeddings import Embeddings

BANK = {"ensemble.fusion.normalisations.vit": "qb_norm", "ensemble.fusion.bank_size": 16}


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("banked") / "project"
    shutil.copytree(finished_project, copy)
    return copy


def latest(project: Path, dataset: str) -> Path:
    versions = sorted((project / "data").glob(f"{dataset}/20*"))
    return versions[-1] / Path(dataset).name


def opened(project: Path, dataset: str) -> Embeddings:
    folder = latest(project, dataset)
    return Embeddings.open(folder if folder.is_dir() else folder.parent)


def test_only_members_with_a_banked_normalisation_read_saved_embeddings_to_predict() -> None:
    nodes = {node.name: node for node in predict(["a", "b"], None, ["b"]).nodes}
    assert {"b.text_embeddings", "b.image_embeddings"} <= set(nodes["b.embed_new_data"].inputs)
    assert not {"a.text_embeddings", "a.image_embeddings"} & set(nodes["a.embed_new_data"].inputs)


def test_a_bank_is_drawn_used_and_carried(project: Path, tmp_path: Path) -> None:
    stale = run_kedro(project, "run", "--pipelines=ensemble", small_parameters(**BANK), check=False)
    assert stale.returncode != 0
    assert "run --pipelines=evaluate again" in stale.stderr + stale.stdout

    run_kedro(project, "run", "--pipelines=evaluate,ensemble", small_parameters(**BANK))
    captions = pd.read_parquet(latest(project, "05_model_input/captions.parquet"))
    train = captions[captions["split"] == "train"]
    for side in ("text", "image"):
        found = opened(project, f"07_model_output/vit/{side}_embeddings")
        assert found.bank is not None
        of_bank = pd.Series(found.bank).value_counts()
        assert set(of_bank.index) == set(train["group"])
        assert (of_bank <= 16).all()
        drawn = {name.removeprefix("bank:") for name in found.ids if name.startswith("bank:")}
        assert drawn <= set(train[f"{side}_id"])
        assert len(drawn) == of_bank.sum()
        assert opened(project, f"07_model_output/resnet/{side}_embeddings").bank is None
    assert sum(
        json.loads(latest(project, "07_model_output/ensemble/fusion.json").read_text())["weights"].values()
    ) == pytest.approx(1.0)

    test = project / "data/01_raw/synthetic_traffic/test"
    (tmp_path / "test/test_images").mkdir(parents=True)
    for image in sorted((test / "test_images").glob("vehicle_*.jpg"))[:12]:
        shutil.copy(image, tmp_path / "test/test_images")
    (tmp_path / "test/test_text.txt").write_text("This is a white Audi Sedan.\nA red Yutong Bus.\n")
    run_kedro(project, "run", "--pipelines=predict", small_parameters(**BANK, **{"predict.root": tmp_path}))
    carried = opened(project, "07_model_output/predict/vit/text_embeddings")
    assert carried.bank is not None
    assert sum(group is not None for group in carried.bank) == len(drawn)
    ranking = pd.read_parquet(latest(project, "07_model_output/predict/ranking.parquet"))
    assert ranking.query("direction == 't2i'").groupby("query_id").size().tolist() == [10, 10]
