"""The twin of iflytek end to end: the published files in, result.csv as published out, one image per text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

from tests.recipes.flickr import FLICKR
from tests.recipes.outputs import embeddings, latest, reported, run_twin, slow_recalls
from xmodal_kedro.models.chinese_clip import ChineseClip

pytestmark = pytest.mark.skipif(not FLICKR.is_dir(), reason="the Flickr8k photos are not beside the repository")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Adapters and micro-batches on, as in the recipe: here everything runs; on the command line the twin learns faster
    # without them.
    adapters = {"rank": 4, "alpha": 4, "towers": "both"}
    return run_twin(
        "iflytek",
        tmp_path_factory.mktemp("iflytek") / "project",
        **{"chinese_clip.train.epochs": 1, "chinese_clip.train.micro_batch": 25},
        **{f"chinese_clip.backbone.lora.{key}": value for key, value in adapters.items()},
    )


@pytest.fixture(scope="module")
def published(project: Path) -> Path:
    return project / "data/01_raw/iflytek_twin/xfdata"


def test_the_result_has_the_columns_and_rows_of_the_sample_and_no_index(project: Path, published: Path) -> None:
    file = latest(project, "submission/result.csv")
    assert file.read_bytes().startswith(b"idx,image_name\n0,")
    result, sample = pd.read_csv(file), pd.read_csv(published / "sample_submit.csv")
    assert list(result.columns) == list(sample.columns)
    assert result.drop(columns="image_name").equals(sample.drop(columns="image_name"))


def test_every_candidate_image_is_given_to_one_text(project: Path, published: Path) -> None:
    result = pd.read_csv(latest(project, "submission/result.csv"))
    candidates = pd.read_csv(published / "dataset/test_candidate_image.csv")["image_name"]
    assert sorted(result["image_name"]) == sorted(candidates)
    assert all((published / "dataset/images" / name).is_file() for name in result["image_name"])


def test_row_i_answers_text_i_by_the_assignment_with_the_highest_sum_of_cosines(project: Path, published: Path) -> None:
    """The published steps over the saved embeddings, S = T I^T, and the names in the order of the texts."""
    image_ids, images = embeddings(project, "chinese_clip", "image")
    text_ids, texts = embeddings(project, "chinese_clip", "text")
    names = [Path(image).name for image in image_ids]
    candidates = pd.read_csv(published / "dataset/test_candidate_image.csv")["image_name"].tolist()
    queries = pd.read_csv(published / "dataset/test_candidate_text.csv")
    pairs = pd.read_parquet(latest(project, "pairs.parquet")).query("split == 'test'").dropna(subset=["text_id"])
    assert pairs["text"].tolist() == queries["text"].tolist()
    scores = (
        texts[[text_ids.index(text) for text in pairs["text_id"]]]
        @ images[[names.index(name) for name in candidates]].T
    )
    rows, columns = linear_sum_assignment(scores, maximize=True)
    answered = pd.read_csv(latest(project, "submission/result.csv"))["image_name"].map(candidates.index)
    # Texts that read the same have the same cosines and may swap their images: the sum is what is unique.
    assert scores[rows, answered].sum() == pytest.approx(scores[rows, columns].sum(), abs=1e-4)
    assert np.isclose(scores[rows, answered], scores[rows, columns], atol=1e-5).mean() > 0.8


def test_recalls_count_equal_sentences_over_the_full_gallery(project: Path) -> None:
    metrics = reported(pd.read_csv(latest(project, "chinese_clip/metrics.csv")), "dev")
    slow = slow_recalls(project, "chinese_clip", "dev")
    assert {name: metrics[name] for name in slow} == pytest.approx(slow, abs=1e-6)


def test_adapters_are_counted_and_saved_beside_the_merged_weights(project: Path) -> None:
    # Query, key and value of three image layers and of one text layer: neither tower is left out.
    assert "LoRA adapts 9 image and 3 text projections" in (project / "output.txt").read_text()
    assert any((latest(project, "chinese_clip/checkpoint") / "adapter").iterdir())


def test_the_weights_are_those_of_the_directory_in_the_layout_of_the_hub(project: Path) -> None:
    directory = project / "data/01_raw/iflytek_twin/models/chinese-clip"
    names = {"config.json", "vocab.txt", "preprocessor_config.json", "model.safetensors"}
    assert {file.name for file in directory.iterdir()} == names
    vocabulary = (directory / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert vocabulary[21128:] == [""]
    backbone = ChineseClip.from_pretrained(latest(project, "chinese_clip/checkpoint"))
    tokens = ["[CLS]", *"草地上的狗。", "[SEP]"]
    assert backbone.tokenize(["草地上的狗。"])["input_ids"].tolist() == [[vocabulary.index(token) for token in tokens]]
