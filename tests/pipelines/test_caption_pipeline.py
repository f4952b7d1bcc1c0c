"""What the pipelines of captions consist of, by the captioners of a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from xmodal_kedro import pipeline_registry
from xmodal_kedro.pipelines.caption.pipeline import create_pipeline

TRAINED = {"member": "clip", "train": {"epochs": 1}}
OPENED = {"weights": "models/blip"}
SHEETS = {"caption_leaderboard", "caption_comparison", "caption_metrics", "caption_table", "caption_sheet"}


def test_a_trained_captioner_begins_with_the_checkpoint_of_its_member() -> None:
    pipeline = create_pipeline({"writer": TRAINED})
    assert {"clip.checkpoint", "captions", "images", "params:writer"} <= pipeline.inputs()
    assert {"writer.captioner", "writer.generated", "writer.metrics", "captions_submission"} <= pipeline.all_outputs()
    assert pipeline.all_outputs() >= SHEETS
    assert not {name for name in pipeline.all_outputs() if name.startswith("ensemble")}


def test_one_with_weights_of_its_own_is_not_trained() -> None:
    pipeline = create_pipeline({"blip": OPENED})
    assert "blip.captioner" not in pipeline.all_outputs() | pipeline.inputs()
    assert "params:blip" in pipeline.inputs()
    assert not {name for name in pipeline.inputs() if name.endswith(".checkpoint")}
    assert "blip.generated" in pipeline.all_outputs()


def test_several_decode_together() -> None:
    pipeline = create_pipeline({"writer": TRAINED, "other": TRAINED, "blip": OPENED}, clip_score="judge")
    (together,) = (node for node in pipeline.nodes if node.name == "decode_ensemble")
    assert {"writer.captioner", "other.captioner", "params:blip"} <= set(together.inputs)
    assert {"ensemble_generated", "ensemble_captions_submission"} <= pipeline.all_outputs()
    assert {node.name for node in pipeline.nodes if "judge.checkpoint" in node.inputs} == {
        *(f"{name}.judge_captions" for name in ("writer", "other", "blip")),
        "compare_captions",
    }
    assert {node.namespace for node in pipeline.nodes} == {"writer", "other", "blip", None}


def test_without_captioners_there_is_nothing() -> None:
    assert not create_pipeline({}).nodes


@pytest.mark.parametrize(
    ("captioners", "source", "ranks"),
    [
        (["writer"], {"format": "folder", "images": "photos"}, False),
        (["writer"], {"format": "table", "file": "a.csv", "columns": {"text": None}}, False),
        (["writer"], {"format": "table", "file": "a.csv"}, True),
        (["writer"], {"format": "queries", "file": "a.txt"}, True),
        ([], {"format": "folder", "images": "photos"}, True),  # captions may lie beside the photos
    ],
)
def test_new_photos_without_queries_are_captioned_and_not_ranked(
    captioners: list[str], source: dict[str, Any], ranks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {
        "member_names": ["clip"],
        "captioner_names": captioners,
        "writer": TRAINED,
        "predict": {"sources": [source]},
    }
    monkeypatch.setattr(pipeline_registry, "active_parameters", lambda: parameters)
    pipeline = pipeline_registry.register_pipelines()["predict"]
    outputs = pipeline.all_outputs()
    assert ("captions" in pipeline.inputs()) == ranks  # photos alone need no vocabulary of earlier texts
    assert ("predict_ranking" in outputs) == ranks
    assert ("predict_captions_submission" in outputs) == bool(captioners)
    assert {"predict_images", "predict_captions"} <= outputs
