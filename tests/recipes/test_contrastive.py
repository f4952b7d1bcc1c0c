"""The twin of contrastive end to end: the published folders in, recalls over the full validation gallery out."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.recipes.flickr import FLICKR
from tests.recipes.outputs import latest, reported, run_twin, slow_recalls
from tests.recipes.sizes import SMALL

pytestmark = pytest.mark.skipif(not FLICKR.is_dir(), reason="the Flickr8k photos are not beside the repository")
RECALLS = [f"{direction}.recall_at_{k}" for direction in ("t2i", "i2t") for k in (1, 5, 10)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrastive") / "project"
    return run_twin("contrastive", folder, **{"resnet_roberta.train.epochs": 1})


def test_the_recalls_of_both_directions_are_reported_over_all_of_the_validation(project: Path) -> None:
    metrics = pd.read_csv(latest(project, "resnet_roberta/metrics.csv")).query("split == 'val' and group == 'all'")
    captions = pd.read_csv(project / "data/01_raw/contrastive_twin/datasets/valid/captions.csv")
    assert list(captions.columns) == ["filename", "caption"]
    assert len(captions) == SMALL.held_out
    for direction in ("t2i", "i2t"):
        rows = metrics[metrics["direction"] == direction].set_index("metric")
        recalls = rows.loc[["recall_at_1", "recall_at_5", "recall_at_10"]]
        assert set(recalls["n_gallery"]) == set(recalls["n_queries"]) == {len(captions)}
        assert recalls["value"].is_monotonic_increasing
        # One caption per photo: by chance k of them all, or a little more where sentences repeat.
        assert recalls["chance"].tolist() == pytest.approx([k / len(captions) for k in (1, 5, 10)], rel=0.1)


def test_they_are_those_of_a_slow_count_over_the_saved_embeddings(project: Path) -> None:
    metrics = reported(pd.read_csv(latest(project, "resnet_roberta/metrics.csv")), "val")
    slow = slow_recalls(project, "resnet_roberta", "val")
    assert list(slow) == RECALLS
    assert {name: metrics[name] for name in slow} == pytest.approx(slow, abs=1e-6)


def test_the_table_has_the_published_form(project: Path) -> None:
    table = pd.read_csv(latest(project, "08_reporting/recalls.csv"))
    assert list(table.columns) == ["split", "direction", "R@1", "R@5", "R@10", "queries", "gallery"]
    assert table["direction"].tolist() == ["image_to_text", "text_to_image"]
    assert set(table["split"]) == {"val"}
    assert set(table["queries"]) == set(table["gallery"]) == {SMALL.held_out}
    slow = slow_recalls(project, "resnet_roberta", "val")
    for direction, row in zip(("i2t", "t2i"), table.to_dict("records"), strict=True):
        for k in (1, 5, 10):
            assert row[f"R@{k}"] == pytest.approx(slow[f"{direction}.recall_at_{k}"], abs=1e-5)


def test_both_towers_come_from_published_files_with_the_real_tokenizer(project: Path) -> None:
    directory = project / "data/01_raw/contrastive_twin/models/resnet-roberta"
    text = {file.name for file in (directory / "text").iterdir()}
    assert text == {"config.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert [file.name for file in (directory / "image").iterdir()] == ["resnet.safetensors"]
    vocabulary = json.loads((latest(project, "resnet_roberta/checkpoint") / "vocab.json").read_text())
    assert vocabulary == json.loads((directory / "text/vocab.json").read_text())
    assert len(vocabulary) == 50265
