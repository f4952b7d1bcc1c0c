"""Published BLIP weights under the names of transformers: same features, any image size, errors that name the file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.models.blip import Blip
from xmodal_kedro.models.blip_weights import name_in_transformers, resize_positions


def pixels(count: int, side: int = SIZE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def as_published(backbone: Backbone) -> dict[str, Tensor]:
    """The tensors under the names of BLIP's own code, with what its training leaves in the file."""
    tensors = {}
    for name, tensor in backbone.model.state_dict().items():
        for new, old in (
            ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
            ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
            ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
            ("vision_model.post_layernorm.", "visual_encoder.norm."),
            ("vision_model.encoder.layers.", "visual_encoder.blocks."),
            (".self_attn.projection.", ".attn.proj."),
            (".self_attn.qkv.", ".attn.qkv."),
            (".layer_norm", ".norm"),
        ):
            name = name.replace(new, old)
        tensors[name] = tensor.clone()
    del tensors["logit_scale"]
    tensors["temp"] = torch.tensor(0.0421)
    extra = {
        "text_encoder.embeddings.position_ids": torch.arange(64)[None],
        "visual_encoder_m.cls_token": tensors["visual_encoder.cls_token"],
        "text_encoder_m.embeddings.word_embeddings.weight": torch.zeros(3),
        "vision_proj_m.weight": torch.zeros(3),
        "image_queue": torch.zeros(3),
        "text_queue": torch.zeros(3),
        "idx_queue": torch.zeros(3),
        "ptr_queue": torch.zeros(1),
        "queue_ptr": torch.zeros(1),
        "text_decoder.cls.predictions.bias": torch.zeros(3),
    }
    return tensors | extra


def test_every_name_maps_back() -> None:
    backbone = small_backbone("blip")
    names = {name_in_transformers(name) for name in as_published(backbone)} - {None}
    assert names == {"temp", *backbone.model.state_dict()} - {"logit_scale"}


def test_published_weights_give_the_same_features(tmp_path: Path) -> None:
    backbone = small_backbone("blip")
    backbone.save_settings(tmp_path)
    torch.save({"model": as_published(backbone), "epoch": 3}, tmp_path / "model_large.pth")
    tokens = backbone.tokenize(TEXTS)
    for _ in range(2):  # the second time from the conversion
        again = Blip.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            assert torch.equal(again.encode_image(pixels(2)), backbone.encode_image(pixels(2)))
            assert torch.equal(again.encode_text(tokens), backbone.encode_text(tokens))
            states = backbone.image_states(pixels(len(TEXTS)))
            assert torch.equal(again.match(states, tokens), backbone.match(states, tokens))
        assert torch.exp(-again.logit_scale).item() == pytest.approx(0.0421)
    assert list(tmp_path.glob("model_large*.safetensors"))


def test_published_weights_need_no_config(tmp_path: Path) -> None:
    small = copy.deepcopy(SMALL["blip"].architecture or {})
    small["vision_config"] |= {"hidden_size": 192, "num_attention_heads": 3, "layer_norm_eps": 1e-6}
    small["text_config"] |= {"hidden_size": 128, "num_attention_heads": 2}
    backbone = build(BackboneConfig(name="blip", architecture=small), texts=TEXTS).eval()
    backbone.save_settings(tmp_path)
    (tmp_path / "config.json").unlink()
    torch.save({"model": as_published(backbone)}, tmp_path / "model_base.pth")
    again = Blip.from_pretrained(tmp_path).eval()
    assert again.image_size == SIZE
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels(2)), backbone.encode_image(pixels(2)))
        tokens = backbone.tokenize(TEXTS)
        assert torch.equal(again.encode_text(tokens), backbone.encode_text(tokens))
    text: Any = again.model.config.text_config  # type: ignore[union-attr]
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0.1, 0.1)


def test_another_image_size_interpolates_the_positions_as_transformers_does(tmp_path: Path) -> None:
    backbone = small_backbone("blip")
    with torch.no_grad():
        backbone.model.get_parameter("vision_model.embeddings.position_embedding").normal_(
            generator=torch.Generator().manual_seed(1)
        )
    backbone.save_pretrained(tmp_path)
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    config = json.loads((tmp_path / "config.json").read_text())
    for side in (48, 16):
        config["vision_config"]["image_size"] = side
        (tmp_path / "config.json").write_text(json.dumps(config))
        again = Blip.from_pretrained(tmp_path).eval()
        shown = pixels(2, side=side)
        with torch.no_grad():
            expected = model.vision_model(shown, interpolate_pos_encoding=True).last_hidden_state
            torch.testing.assert_close(again.image_states(shown), expected, atol=1e-5, rtol=1e-5)
        assert again.image_size == side


def test_the_position_of_cls_is_not_interpolated() -> None:
    table = torch.cat([torch.full((1, 1, 2), 9.0), torch.full((1, 16, 2), 3.0)], dim=1)
    resized = resize_positions(table, 1 + 36)
    assert resized.shape == (1, 37, 2)
    assert resized[0, 0].tolist() == [9.0, 9.0]
    torch.testing.assert_close(resized[0, 1:], torch.full((36, 2), 3.0))
    assert resize_positions(table, 17) is table


def test_files_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    backbone = small_backbone("blip")
    backbone.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BrokenArtifactError, match=r"model.safetensors is not of the model that config.json describes: 12"
    ):
        Blip.from_pretrained(tmp_path)
    config["vision_config"]["num_hidden_layers"] = 3
    config["text_config"]["vocab_size"] -= 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenArtifactError, match=r"the vocabulary has \d+ tokens with \[DEC\] and \[ENC\]"):
        Blip.from_pretrained(tmp_path)
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "model_base.pth")
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        BrokenArtifactError, match=r"model_base.pth holds no BLIP model .*'vision_proj.weight' is wanted"
    ):
        Blip.from_pretrained(tmp_path)
