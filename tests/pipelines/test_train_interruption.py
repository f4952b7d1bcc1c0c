"""A member whose training was interrupted: the same node once more writes the checkpoint of one that was not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from tests.captioning.stores import FINGERPRINTS, store_of
from tests.models.small import SIZE, small_member
from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.hooks import ProjectHook
from xmodal_kedro.pipelines.train import nodes
from xmodal_kedro.training.state import discard_states


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    store_of(tmp_path / "images", [str(row) for row in range(8)], pixels=pixels)
    monkeypatch.setattr(ImageStore, "open", lambda directory: ImageStore(directory, {"size": SIZE, **FINGERPRINTS}))
    return tmp_path / "images"


def train(
    tmp_path: Path, images: Path, checkpoint: str, member: MemberConfig, stop: int | None = None, resume: bool = True
) -> Any:
    """Train into a checkpoint; ends as Ctrl-C does when step `stop` is reported."""
    ids = [str(row) for row in range(8)]
    captions = pd.DataFrame({"split": "train", "image_id": ids, "text_id": ids, "text": [f"a {row} b" for row in ids]})
    captions = captions.assign(group="all", attributes=None)
    job = nodes.TrainJob(
        *(member, captions, captions, images, EvaluationConfig(), RelevanceConfig()),
        *(
            RuntimeConfig(device="cpu", processes=1, resume=resume),
            tmp_path / checkpoint,
            tmp_path / "states",
            tmp_path,
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        if stop is not None:
            patch.setattr("xmodal_kedro.tracking.sink.metric_sink", lambda name: _Stopping(stop))
        return nodes.train_and_write(job)


class _Stopping:
    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> _Stopping:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, step: int, numbers: dict[str, float]) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def test_it_goes_on_where_it_was(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = small_member("chinese_clip", keep="last", epochs=2)  # steps of two per epoch, with dropout
    train(tmp_path, images, "whole", member)
    discard_states(tmp_path / "states", [member.name])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, images, "interrupted", member, stop=3)
    states = tmp_path / "states"
    assert [path.name for path in states.iterdir()] == [member.name]
    assert not (tmp_path / "interrupted").exists()

    changed = member.model_copy(update={"train": member.train.model_copy(update={"lr": 1e-4})})
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        train(tmp_path, images, "changed", changed, stop=1)  # before its first save, so the other state is kept
    assert "an interrupted training with other settings or data" in caplog.text
    assert "goes on" not in caplog.text

    with caplog.at_level(logging.INFO):
        history = train(tmp_path, images, "again", member)
    assert "goes on after epoch 1 of an interrupted run" in caplog.text
    assert history["epoch"].tolist() == [0, 1, 2]
    prints = [
        json.loads((tmp_path / name / "MANIFEST.json").read_text())["fingerprints"] for name in ("whole", "again")
    ]
    assert prints[0] == prints[1]


def test_what_had_ended_is_not_trained_again(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run that trained it may have failed later, or in the training of another."""
    member = small_member("chinese_clip", keep="last", epochs=2)
    first = train(tmp_path, images, "first", member)
    with caplog.at_level(logging.INFO):
        again = train(tmp_path, images, "again", member, stop=1)  # no step is taken that could be stopped
    assert "had ended with epoch 2 of an interrupted run" in caplog.text
    pd.testing.assert_frame_equal(first, again)
    prints = [
        json.loads((tmp_path / name / "MANIFEST.json").read_text())["fingerprints"] for name in ("first", "again")
    ]
    assert prints[0] == prints[1]


def test_states_go_when_the_run_that_trained_has_ended_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kedro.datasets.directory.training_states", lambda: tmp_path)
    for name in ("vit", "resnet", "writer", "other"):
        (tmp_path / name / f"{'0' * 16}-000001").mkdir(parents=True)
    hook, catalog = ProjectHook(), DataCatalog()
    hook.project = tmp_path
    trainings = [("vit", "train_member"), ("resnet", "train_member"), ("writer", "train_captioner")]
    run = Pipeline([Node(small_member, None, f"{name}.x", name=node, namespace=name) for name, node in trainings])
    hook.after_pipeline_run({}, run, catalog)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_nothing_is_kept_where_nothing_is_to_be_resumed(tmp_path: Path, images: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, images, "interrupted", small_member("chinese_clip", keep="last", epochs=2), 3, resume=False)
    assert not (tmp_path / "states").exists()
