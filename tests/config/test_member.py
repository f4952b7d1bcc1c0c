"""What of a member contradicts itself is refused with its recipe, and relative weights belong to the project."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xmodal_kedro.config.member import BackboneConfig, LoraConfig, LossConfig, MomentumConfig


def test_lora_and_unlocked_groups_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="lora freezes all but its adapters, and unlocked_groups unlocks layers"):
        BackboneConfig(name="open_clip", lora=LoraConfig(), unlocked_groups={"image": 1})
    assert BackboneConfig(name="open_clip", lora=LoraConfig()).unlocked_groups == {}


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"truncation": 0.05}, {"directions": "sum"}])
def test_momentum_goes_alone(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="momentum goes with none of label_smoothing"):
        LossConfig(momentum=MomentumConfig(), **change)
    assert LossConfig(**change).momentum is None
    assert LossConfig(momentum=MomentumConfig()).momentum is not None


@pytest.mark.parametrize(
    "change", [{"label_smoothing": 0.1}, {"truncation": 0.05}, {"directions": "sum"}, {"momentum": MomentumConfig()}]
)
def test_soft_targets_go_alone(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="'soft_target' goes with none of label_smoothing"):
        LossConfig(kind="soft_target", **change)
    assert LossConfig(kind="soft_target").kind == "soft_target"


def test_paths_in_an_architecture_start_from_the_root(tmp_path: Path) -> None:
    architecture = {"width": 8, "text": "owner/gpt", "image": "./image.pth", "words": None, "mean": "./mean"}
    backbone = BackboneConfig(name="res2net_gpt", architecture=architecture)
    whole = {**architecture, "image": str(tmp_path / "image.pth")}
    assert backbone.at(tmp_path, ("text", "image", "words", "absent")).architecture == whole
    assert backbone.at(tmp_path) == backbone


def test_relative_weights_start_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "models" / "clip.bin").touch()
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    for there in ("models/clip", "models/clip.bin", "models/misspelt", "./nowhere", "/elsewhere/clip"):
        backbone = BackboneConfig(name="open_clip", weights=there, context=8)
        assert backbone.at(tmp_path) == backbone.model_copy(
            update={"weights": str(tmp_path / there.removeprefix("./"))}
        )
    for elsewhere in (None, "owner/clip", "hf-hub:owner/clip", "ViT-B-32:openai"):
        backbone = BackboneConfig(name="open_clip", weights=elsewhere)
        assert backbone.at(tmp_path) == backbone
