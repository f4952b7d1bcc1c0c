"""The twin of clipcap_zh end to end: corpora as published in, res.json and res_ensemble.json as published out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.conftest import make_project, run_kedro
from tests.recipes.flickr import FLICKR
from tests.recipes.layout_clipcap_zh import lay_out_language
from tests.recipes.outputs import latest
from tests.recipes.sizes import Size
from tests.recipes.twins import lay_out
from tests.reference.captions import bleu, cider, rouge_l

pytestmark = pytest.mark.skipif(not FLICKR.is_dir(), reason="the Flickr8k photos are not beside the repository")

SMALL = Size(train=150, held_out=40)
CAPTIONERS = ["model_0923", "model_0920", "model_0913"]
WEIGHTS = [0.5, 0.3, 0.2]
METRICS = ["bleu_1", "bleu_4", "rouge_l", "cider_d"]  # METEOR would start a Java program for every table
FEW_STEPS = {"evaluation.bootstrap": 50, "clip.train.epochs": 1, "clip.train.warmup_steps": 0}


def run(project: Path, local: dict[str, object], *arguments: str, **parameters: object) -> str:
    """Run the twin with the user's own settings in `local`; returns what it says."""
    (project / "conf/local").mkdir(exist_ok=True)
    (project / "conf/local/parameters.yml").write_text(yaml.safe_dump(local))
    given = ",".join(f"{key}={value}" for key, value in {**FEW_STEPS, **parameters}.items())
    result = run_kedro(project, "run", "--env=clipcap_zh_twin", *arguments, f"--params={given}")
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("clipcap_zh") / "project")
    lay_out("clipcap_zh", folder, SMALL)
    few = {"epochs": 1, "batch_size": 80, "warmup_steps": 0, "keep": "last"}
    settings = {f"{name}.train.{key}": value for name in CAPTIONERS for key, value in few.items()}
    output = run(folder, {"captioning": {"metrics": METRICS}}, **{**settings, "model_0923.train.epochs": 3})
    (folder / "output.txt").write_text(output)
    return folder


def generated(project: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(latest(project, f"{name}/generated.parquet"))


def references(project: Path, split: str) -> dict[str, list[str]]:
    table = pd.read_parquet(latest(project, "captions.parquet")).query("split == @split").dropna(subset=["text"])
    return {image: list(dict.fromkeys(texts)) for image, texts in table.groupby("image_id", sort=False)["text"]}


def cut(text: str) -> list[str]:
    """Characters that are letters or digits."""
    return re.findall(r"\w", text.lower())


def test_the_layout_deals_photos_to_the_corpora_that_the_recipe_lists(project: Path) -> None:
    root = project / "data/01_raw/clipcap_zh_twin"
    corpora = [root / name for name in ("flickr8k_cn", "flickr30k_cn", "coco_cn", "aic_icc", "hlb", "val")]
    for folder in corpora:
        table = pd.read_csv(folder / "captions.csv")
        assert list(table.columns) == ["images", "captions"]
        assert set(table["images"]) == {file.name for file in (folder / "images").iterdir()}
    assert sum(len(list((folder / "images").iterdir())) for folder in corpora) == SMALL.train + SMALL.held_out
    output = (project / "output.txt").read_text()
    assert "Leak" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("file", "writer"), [("res.json", None), ("res_ensemble.json", "captions")])
def test_each_photo_of_test_has_one_caption_in_the_published_format(
    project: Path, file: str, writer: str | None
) -> None:
    text = latest(project, f"submission/{file}").read_text(encoding="utf-8")
    assert "\\u" not in text
    answers = json.loads(text)
    photos = {photo.name for photo in (project / "data/01_raw/clipcap_zh_twin/test").iterdir()}
    assert set(answers) == photos
    if writer is None:
        leaderboard = pd.read_csv(latest(project, "captions/leaderboard.csv")).query("split == 'dev'")
        scores = leaderboard.set_index("captioner")["cider_d_characters"]
        writer = max(CAPTIONERS, key=lambda name: scores[name])  # of equal ones the first
    table = generated(project, writer).query("split == 'test'")
    assert answers == {Path(row.image_id).name: [row.caption] for row in table.itertuples()}


def test_the_ensemble_mixes_logits_by_the_published_weights(project: Path) -> None:
    """Its log-probabilities again: each captioner reads whole captions without a cache, and the logits are mixed."""
    from xmodal_kedro.captioning.checkpoint import open_captioner
    from xmodal_kedro.data.image_store import ImageStore

    table = generated(project, "captions").query("split == 'val' and ended").head(20)
    pointer = latest(project, "images.json")
    store = ImageStore.open((pointer.parent / json.loads(pointer.read_text())["directory"]).resolve())
    pixels = torch.from_numpy(np.ascontiguousarray(store.pixels[store.rows(table["image_id"].tolist())]))
    opened = [open_captioner(latest(project, f"{name}/captioner"), project) for name in CAPTIONERS]
    ids = opened[0].captioner.vocabulary.batch(table["caption"].tolist(), 80)["input_ids"]
    with torch.no_grad():
        logits = [one.captioner(one.transform(pixels), ids) for one in opened]

    def total(weights: list[float]) -> np.ndarray:
        mixed = sum(weight * one for weight, one in zip(weights, logits, strict=True))
        gains = torch.log_softmax(mixed, -1).gather(2, ids[:, :, None])[:, :, 0]
        gains[ids == 0] = 0.0  # padding
        return gains[:, 1:].sum(1).numpy()  # [CLS] is given

    expected = table["log_probability"].to_numpy()
    assert total(WEIGHTS) == pytest.approx(expected, abs=1e-3)
    assert np.abs(total([1.0, 1.0, 1.0]) / expected - 1).max() > 1e-3


def test_metrics_are_those_of_the_formulas_over_all_references(project: Path) -> None:
    texts = references(project, "dev")
    assert sum(map(len, texts.values())) > 2 * len(texts)
    table = generated(project, "captions").query("split == 'dev'")
    captions = [cut(text) for text in table["caption"]]
    corpus = [[cut(text) for text in texts[image]] for image in table["image_id"]]
    metrics = pd.read_csv(latest(project, "captions/metrics.csv")).query("split == 'dev'").set_index("metric")["value"]
    for order in (1, 4):
        assert metrics[f"bleu_{order}_characters"] == pytest.approx(bleu(captions, corpus, order), abs=2e-4)
    rouges = [rouge_l(caption, of) for caption, of in zip(captions, corpus, strict=True)]
    assert metrics["rouge_l_characters"] == pytest.approx(np.mean(rouges), abs=1e-9)
    each = pd.read_csv(latest(project, "captions/captions.csv")).query("split == 'dev'")
    assert each["image_id"].tolist() == table["image_id"].tolist()
    assert metrics["cider_d_characters"] == pytest.approx(each["cider_d_characters"].mean(), abs=1e-5)
    few = cider(captions[:3], corpus[:3], corpus, d=True)
    assert each["cider_d_characters"].head(3).tolist() == pytest.approx(few, abs=1e-4)


def test_the_leaderboard_has_captioners_ensemble_and_captions_without_a_model(project: Path) -> None:
    board = pd.read_csv(latest(project, "captions/leaderboard.csv"))
    for split, images in (("dev", len(references(project, "dev"))), ("val", SMALL.held_out)):
        rows = board[board["split"] == split]
        assert rows["captioner"].tolist() == [*CAPTIONERS, "ensemble", "constant", "nearest"]
        assert (rows["images"] == images).all()
        constant = rows.set_index("captioner").loc["constant"]
        assert constant["cider_d_characters.low"] < constant["cider_d_characters"] < constant["cider_d_characters.high"]
        assert constant["distinct_captions"] == pytest.approx(1 / images)
    output = (project / "output.txt").read_text()
    assert "constant" in output
    assert "Written by this run" in output


def test_captioners_are_versioned_checkpoints_that_differ_and_share_a_vocabulary(project: Path) -> None:
    from safetensors.torch import load_file

    directories = [latest(project, f"{name}/captioner") for name in CAPTIONERS]
    assert all((directory / "MANIFEST.json").is_file() for directory in directories)
    vocabularies = {(directory / "vocab.json").read_text(encoding="utf-8") for directory in directories}
    clip = latest(project, "clip/checkpoint")
    assert vocabularies == {(clip / "vocab.json").read_text(encoding="utf-8")}
    weights = [load_file(directory / "weights.safetensors") for directory in (clip, *directories)]
    key = next(name for name in weights[0] if name.endswith("head.weight"))
    distinct = {tensors[key].numpy().tobytes() for tensors in weights}
    assert len(distinct) == len(weights)


def test_every_captioner_is_a_run_beside_that_of_the_clip(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {run.data.tags["member"]: run for run in runs if "member" in run.data.tags}
    assert sorted(children) == sorted(["clip", *CAPTIONERS])
    for name in CAPTIONERS:
        assert children[name].data.params["member"] == "clip"
        history = client.get_metric_history(children[name].info.run_id, "dev/cider_d_characters")
        assert len(history) >= 1
        assert "val.cider_d_characters" in children[name].data.metrics


def test_english_needs_parameters_alone(tmp_path: Path) -> None:
    """The commands of the page, with one captioner, which makes no ensemble."""
    project = make_project(tmp_path / "project")
    lay_out_language(project / "data/01_raw/clipcap_zh_twin_en", "en", Size(train=100, held_out=20))
    captioning = {"metrics": METRICS, "ensemble": {"weights": "equal"}}
    run(
        project,
        {"captioner_names": ["model_0923"], "captioning": captioning},
        "--pipelines=data_processing,train,caption",
        **{"data.root": "data/01_raw/clipcap_zh_twin_en", "captioning.tokeniser": "ptb"},
        **{"captioning.decoding.max_steps": 100, "model_0923.train.epochs": 1, "model_0923.train.warmup_steps": 0},
    )
    board = pd.read_csv(latest(project, "captions/leaderboard.csv")).query("split == 'val'").set_index("captioner")
    assert list(board.index) == ["model_0923", "constant", "nearest"]
    assert board.loc["nearest", "bleu_1_ptb"] > 0.1
    answers = json.loads(latest(project, "submission/res.json").read_text())
    assert len(answers) == 4
    assert all(ord(letter) < 128 for (caption,) in answers.values() for letter in caption)
    assert not list((project / "data").rglob("res_ensemble.json"))
