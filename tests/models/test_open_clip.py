"""Every published form of open_clip's weights loads to the features that open_clip itself computes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from tests.models.small import SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError, Backbone
from xmodal_kedro.models.open_clip import OpenClip
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.weights import MissingWeightsError

TINY = "xmodal-tiny"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the layout of the hub with a .bin, of an architecture that open_clip knows by name."""
    backbone = small_backbone("open_clip", seed=3)
    backbone.save_settings(tmp_path)
    torch.save(backbone.model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    known = open_clip.get_model_config
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(config) if name == TINY else known(name))
    return tmp_path


def loaded(weights: Path | str, model_name: str | None = None, **changes: Any) -> Backbone:
    architecture = None if model_name is None else {"model_name": model_name, **changes}
    return build(BackboneConfig(name="open_clip", weights=str(weights), architecture=architecture)).eval()


def same(one: Backbone, two: Backbone) -> bool:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = torch.equal(one.encode_text(one.tokenize(TEXTS)), two.encode_text(two.tokenize(TEXTS)))
        return texts and torch.equal(one.encode_image(pixels), two.encode_image(pixels))


def test_a_published_bin_loads_as_it_is_and_is_converted_once(published: Path) -> None:
    expected = small_backbone("open_clip", seed=3)
    assert same(loaded(published), expected)
    assert (published / "open_clip_pytorch_model.bin.safetensors").is_file()
    made = (published / "open_clip_pytorch_model.bin.safetensors").stat().st_mtime_ns
    assert same(loaded(published), expected)
    assert (published / "open_clip_pytorch_model.bin.safetensors").stat().st_mtime_ns == made


def test_a_read_only_directory_loads_too(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert same(loaded(published), small_backbone("open_clip", seed=3))
    assert not (published / "open_clip_pytorch_model.bin.safetensors").exists()


def test_weights_without_their_config_need_the_name_of_the_architecture(published: Path) -> None:
    file = published / "open_clip_pytorch_model.bin"
    with pytest.raises(MissingWeightsError, match=r"comes without open_clip_config.json.*\{model_name: ViT-H-14\}"):
        loaded(file)
    with pytest.raises(ArchitectureError, match="brings its own architecture"):
        loaded(published, TINY)
    (published / "open_clip_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"comes without open_clip_config.json"):
        loaded(published)
    expected = small_backbone("open_clip", seed=3)
    assert same(loaded(file, TINY), expected)
    assert same(loaded(published, TINY), expected)
    shutil.copy(file, published / "other.pt")
    assert same(loaded(published / "other.pt", TINY), expected)
    with pytest.raises(MissingWeightsError, match=r"one weight file .* is wanted in .*, there are 2"):
        loaded(published, TINY)
    with pytest.raises(ArchitectureError, match=r"is \{model_name: ...\} alone"):
        loaded(file, TINY, embed_dim=4)
    torch.save({"visual.proj": torch.ones(2, 2)}, file)
    with pytest.raises(ArchitectureError, match="does not fit this architecture"):
        loaded(file, TINY)


@pytest.mark.parametrize("writable", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    published: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: writable)
    torch.save({"state_dict": {}, "hook": os.getcwd}, published / "open_clip_pytorch_model.bin")
    with pytest.raises(PublishedWeightsError, match="holds more than tensors"):
        loaded(published)


def test_a_tag_loads_what_open_clip_would_load(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced; names, preprocessing and activation are open_clip's own."""
    tag = {"hf_hub": "laion/tiny/", "url": "", "mean": (0.5,) * 3, "std": (0.25,) * 3, "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag_: tag if tag_ == "openai" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(published / "open_clip_pytorch_model.bin"))
    backbone = loaded(f"{TINY}:openai")
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)
    quick = [type(module).__name__ for module in backbone.modules()]
    assert "QuickGELU" in quick
    assert not same(backbone, small_backbone("open_clip", seed=3))
    del tag["quick_gelu"]
    assert same(loaded(f"{TINY}:openai"), small_backbone("open_clip", seed=3))
    with pytest.raises(MissingWeightsError, match=f"open_clip has no 'none' for {TINY}"):
        loaded(f"{TINY}:none")
    with pytest.raises(ArchitectureError, match=r"open_clip has no 'ViT-B32'; similar are .*ViT-B-32"):
        loaded("ViT-B32:openai")


def test_a_tag_that_cannot_be_fetched_says_which_files_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise FileNotFoundError("offline")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(MissingWeightsError) as failure:
        loaded("ViT-B-32:laion2b_s34b_b79k")
    for part in (
        "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K ",
        "data/01_raw/weights/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "open_clip_config.json; open_clip_model.safetensors or open_clip_pytorch_model.bin",
        "{model_name: ViT-B-32}",
    ):
        assert part in str(failure.value)


@pytest.mark.parametrize("weights", ["laion/CLIP-big", "hf-hub:laion/CLIP-big"])
def test_a_hub_id_that_cannot_be_fetched_says_which_files_to_put_where(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError) as failure:
        loaded(weights)
    for part in ("https://huggingface.co/laion/CLIP-big ", "data/01_raw/weights/CLIP-big", "open_clip_config.json"):
        assert part in str(failure.value)


@pytest.mark.parametrize("name", sorted(name for name in SMALL if name.startswith("open_clip")))
def test_trimmed_captions_have_the_features_that_open_clip_gives_padded_ones(name: str) -> None:
    backbone = small_backbone(name)
    model: Any = backbone.model
    for text in TEXTS:
        tokens = backbone.tokenize([text])
        assert tokens["input_ids"].shape[1] < 40
        with torch.no_grad():
            expected = model.encode_text(backbone.tokenizer([text]))  # type: ignore[attr-defined]
            torch.testing.assert_close(backbone.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)


def names_of(backbone: Backbone, groups: list[list[nn.Parameter]]) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
    return [{names[id(parameter)] for parameter in group} for group in groups]


def test_the_last_five_groups_of_a_vit_h_are_those_that_open_clip_unlocks() -> None:
    """The published lock: projection, last block with its norm, and the three blocks before it."""
    with torch.device("meta"):  # else it draws random weights before it throws them away
        model: Any = open_clip.create_model("ViT-H-14", device="meta")
        theirs: Any = open_clip.create_model("ViT-H-14", device="meta")
    settings = {"model_cfg": open_clip.get_model_config("ViT-H-14"), "preprocess_cfg": {}}
    backbone = OpenClip(model, open_clip.get_tokenizer("ViT-H-14"), settings)
    *_, first, second, third, last, head = names_of(backbone, backbone.layer_groups("image"))
    for group, block in zip((first, second, third), (28, 29, 30), strict=True):
        assert {name.rsplit("resblocks.")[1].split(".")[0] for name in group} == {str(block)}
    assert {name.split(".")[1] for name in last} == {"transformer", "ln_post"}
    assert {name.split(".")[3] for name in last if "resblocks" in name} == {"31"}
    assert head == {"visual.proj"}
    backbone.freeze({"image": 5})
    ours = {name for name, parameter in model.visual.named_parameters() if parameter.requires_grad}
    theirs.lock_image_tower(unlocked_groups=5)
    assert ours == {name for name, parameter in theirs.visual.named_parameters() if parameter.requires_grad}
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "visual" not in name)
