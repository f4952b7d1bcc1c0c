"""Nodes load weights relative to the project, whatever folder the run was started in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.models.small import small_backbone, small_member
from xmodal_kedro.config.data import CompletionConfig, PromptsConfig, RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig
from xmodal_kedro.pipelines.data_processing import nodes as data_processing
from xmodal_kedro.pipelines.train import nodes as training


class _LoadedError(Exception):
    """Ends a node where it has its model."""


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemberConfig:
    """A member with relative weights, in a process that works in a sub-folder of the project."""
    small_backbone("open_clip").save_pretrained(tmp_path / "models" / "clip")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    for module in (training, data_processing):
        monkeypatch.setattr(module, "project_path", lambda: tmp_path)

    def build(config: BackboneConfig, *_: object, root: Path) -> None:
        raise _LoadedError(config.at(root).weights)

    monkeypatch.setattr("xmodal_kedro.models.build", build)
    backbone = BackboneConfig(name="open_clip", weights="models/clip")
    return small_member().model_copy(update={"backbone": backbone})


def test_a_member_is_trained_from_them(member: MemberConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pd.DataFrame({"text": ["a"]})
    monkeypatch.setattr("xmodal_kedro.datasets.directory.staging", lambda _: tmp_path / "staged")
    monkeypatch.setattr("xmodal_kedro.data.image_store.ImageStore.open", lambda _: None)
    monkeypatch.setattr("xmodal_kedro.training.examples.train_examples", lambda *_: texts)
    images: Any = SimpleNamespace(directory=tmp_path)
    with pytest.raises(_LoadedError, match=f"^{tmp_path}/models/clip$"):
        training.train_member(
            texts, images, member, EvaluationConfig(), RelevanceConfig(), RuntimeConfig(device="cpu", processes=1)
        )


def test_attributes_are_completed_with_them(
    member: MemberConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame({"image_id": ["a"]})
    monkeypatch.setattr("xmodal_kedro.data.completion.incomplete_rows", lambda *_: rows)
    monkeypatch.setattr("xmodal_kedro.data.prompts.train_vocabulary", lambda *_: None)
    monkeypatch.setattr("xmodal_kedro.data.completion.completion_key", lambda *given: given[3].weights)

    def complete(rows: pd.DataFrame, folder: Path, key: Any, make: Any) -> None:
        assert key() == str(tmp_path / "models/clip")  # the files there count, so they must be found
        make()

    monkeypatch.setattr("xmodal_kedro.data.completion.complete_or_reuse", complete)
    images: Any = SimpleNamespace(ids=["a"], fingerprint="")
    with pytest.raises(_LoadedError, match=f"^{tmp_path}/models/clip$"):
        data_processing.complete_attributes(
            rows.assign(text="a"),
            images,
            PromptsConfig(),
            CompletionConfig(member="m"),
            member,
            RuntimeConfig(device="cpu"),
        )
