"""What metrics need, and a split without images, are named before the first node, with the key and the fix."""

from __future__ import annotations

import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig, CaptionTrainConfig
from xmodal_kedro.config.data import Columns, Source
from xmodal_kedro.data.caption_checks import check_judging

TRAIN = Source(split="train", format="table", file="train.csv")
VAL = Source(split="val", format="folder", images="val")
QUERIES = Source(split="test", format="queries", file="test.txt")


def problems(*sources: Source, metric: str = "cider_d", **captioning: Any) -> list[str]:
    train = CaptionTrainConfig(epochs=1, batch_size=4, lr=1e-3, metric=metric)
    writers = {"writer": CaptionerConfig(member="gpt", train=train), "blip": CaptionerConfig(weights="raw/blip")}
    return check_judging(writers, CaptioningConfig(**captioning), sources or (TRAIN, VAL)).problems


@pytest.fixture
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without jieba and Java."""
    find = importlib.util.find_spec

    def without_jieba(name: str, *rest: Any) -> ModuleSpec | None:
        return None if name == "jieba" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_jieba)
    monkeypatch.setattr(shutil, "which", lambda _: None)


@pytest.mark.usefixtures("_bare")
def test_what_a_bare_installation_cannot_compute_is_named() -> None:
    assert problems() == []
    assert problems(tokeniser="ptb") == []
    assert problems(tokeniser="words") == [
        "captioning.tokeniser: 'words' needs jieba, which is not installed. Set it to characters, or install "
        "xmodal-kedro[captioning]."
    ]
    (problem,) = problems(metric="meteor")
    assert problem.startswith("writer.train.metric: METEOR needs Java")
    assert problem.endswith(" Or set the key to cider_d.")
    assert len(problems(metric="meteor", tokeniser="words")) == 2


def test_a_split_without_images_is_named() -> None:
    assert problems(TRAIN, split="dev") == []
    assert problems(TRAIN, VAL, split="val") == []
    (problem,) = problems(TRAIN, VAL, QUERIES, split="test")
    assert problem == (
        "captioning.split: no source of data.sources has images of test, whose captions are to be handed in. Add one, "
        "or set the key to a split with images (dev, val)."
    )
    (problem,) = problems(TRAIN, QUERIES)
    assert "has images of test or val" in problem
    assert problem.endswith("(dev).")


def test_images_lie_in_folders_columns_or_shards() -> None:
    texts = {"split": "test", "format": "parquet", "file": "*.parquet"}
    assert problems(Source(**texts, columns=Columns(image=None, bytes="jpg")), split="test") == []
    assert problems(Source(**texts, columns=Columns(image="photo")), split="test") == []
    assert "(there is none)" in problems(Source(**texts, columns=Columns(image=None)), split="test")[0]
