"""Rows whose texts become equal by cleaning are positives of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.pipelines.train import nodes


class _StopError(Exception):
    """Carries what training would have begun with."""


def _stop(backbone: Any, pixels: Any, examples: pd.DataFrame, *rest: Any) -> None:
    raise _StopError(examples)


def _rows(ids: Sequence[str]) -> np.ndarray:
    return np.arange(len(ids))


@pytest.mark.parametrize("clean", [False, True])
def test_keys_are_made_of_the_cleaned_texts(clean: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = SimpleNamespace(rows=_rows, pixels=None)
    monkeypatch.setattr("xmodal_kedro.data.image_store.ImageStore.open", lambda directory: store)
    monkeypatch.setattr("xmodal_kedro.models.build", lambda *args, **kwargs: None)
    monkeypatch.setattr("xmodal_kedro.training.loop.train", _stop)
    for unused in ("_evaluation", "_state"):
        monkeypatch.setattr(nodes, unused, lambda *args: None)
    train = {"epochs": 1, "batch_size": 2, "lr": 1e-3, "loss": {"multi_positive": "text"}}
    if clean:
        train["clean_text"] = {"lower": True, "blank": "."}
    member = MemberConfig.model_validate({"name": "a", "backbone": {"name": "open_clip"}, "train": train})
    captions = pd.DataFrame(
        {
            "split": ["train", "train", "train", "test"],
            "image_id": ["1", "2", "3", None],
            "text": ["A dog.", "a dog", "a cat", "A dog."],
            "group": "all",
        }
    )
    job = nodes.TrainJob(
        *(member, captions, captions, tmp_path, EvaluationConfig(), RelevanceConfig(), RuntimeConfig()),
        *(tmp_path, tmp_path, tmp_path),
    )
    with pytest.raises(_StopError) as stopped:
        nodes.train_and_write(job)
    (examples,) = stopped.value.args
    assert examples["text"].tolist() == (["a dog", "a dog", "a cat"] if clean else ["A dog.", "a dog", "a cat"])
    assert examples["key"].nunique() == (2 if clean else 3)
