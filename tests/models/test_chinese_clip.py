"""Chinese-CLIP as transformers computes it, from either weight file; what transformers cannot load is said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ChineseCLIPModel

from tests.models.small import SIZE, TEXTS, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError, Backbone
from xmodal_kedro.models.weights import MissingWeightsError


def loaded(weights: Path | str) -> Backbone:
    return build(BackboneConfig(name="chinese_clip", weights=str(weights))).eval()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory in the layout of the hub, with a .bin in place of safetensors."""
    backbone = small_backbone("chinese_clip", seed=3)
    backbone.save_settings(tmp_path)
    tensors = backbone.model.state_dict()
    # Old versions of transformers saved this buffer.
    tensors["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_features_and_logits_are_those_of_the_forward_of_transformers(tmp_path: Path) -> None:
    backbone = small_backbone("chinese_clip")
    backbone.save_pretrained(tmp_path)
    model: Any = ChineseCLIPModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(len(TEXTS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
        image = nn.functional.normalize(backbone.encode_image(pixels), dim=-1)
        text = nn.functional.normalize(backbone.encode_text(tokens), dim=-1)
    torch.testing.assert_close(image, output.image_embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(text, output.text_embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(backbone.logit_scale.exp() * text @ image.T, output.logits_per_text)


def test_a_published_bin_gives_the_same_weights_and_is_converted_once(published: Path) -> None:
    expected = small_backbone("chinese_clip", seed=3).model.state_dict()
    for _ in range(2):
        state = loaded(published).model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert (published / "pytorch_model.bin.safetensors").is_file()


def test_tensors_that_are_missing_are_said_and_not_drawn_at_random(published: Path) -> None:
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    del tensors["visual_projection.weight"]
    torch.save(tensors, published / "pytorch_model.bin")
    with pytest.raises(ArchitectureError, match=r"1 tensors that config.json asks for .* such as visual_projection"):
        loaded(published)


@pytest.mark.parametrize(
    "weights", ["OFA-Sys/chinese-clip-rn50", "hf-hub:OFA-Sys/chinese-clip-rn50", "clip_cn_rn50.pt"]
)
def test_the_resnet_is_not_supported_by_name(weights: str) -> None:
    with pytest.raises(MissingWeightsError, match=f"'{weights}' is not supported: .* no Chinese-CLIP with a ResNet"):
        loaded(weights)


@pytest.mark.parametrize("layers", [[3, 4, 6, 3], "[3,4,6,3]"])
def test_the_resnet_is_not_supported_by_its_config(published: Path, layers: Any) -> None:
    (published / "config.json").write_text(json.dumps({"embed_dim": 1024, "vision_layers": layers}))
    with pytest.raises(ArchitectureError, match="no Chinese-CLIP with a ResNet"):
        loaded(published)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.layer1.0.conv1.weight", "no Chinese-CLIP with a ResNet"),
        ("visual.conv1.weight", "tensor names of the original code"),
        ("bert.embeddings.LayerNorm.weight", "tensor names of the original code"),
    ],
)
def test_weights_of_the_original_code_are_known_by_their_names(published: Path, name: str, message: str) -> None:
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": torch.ones(1)}}, published / "pytorch_model.bin")
    with pytest.raises(ArchitectureError, match=message):
        loaded(published)


def test_original_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "clip_cn_vit-h-14.pt").touch()
    for weights in (tmp_path, tmp_path / "clip_cn_vit-h-14.pt"):
        with pytest.raises(MissingWeightsError, match=r"clip_cn_vit-h-14.pt' is not supported.*config.json, vocab.txt"):
            loaded(weights)


def test_a_tag_is_for_open_clip_alone() -> None:
    with pytest.raises(MissingWeightsError, match="model:tag is for open_clip alone"):
        loaded("ViT-B-32:openai")
