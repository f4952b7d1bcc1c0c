"""Tiny members of every backbone, random weights, under a million parameters, for any test that needs a model."""

from __future__ import annotations

from typing import Any

from xmodal_kedro.config.member import BackboneConfig, MemberConfig, TrainConfig
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import Backbone

SIZE = 32  # pixels
TEXTS = [
    "A red car.",
    "This is a white Audi SUV. The brand of the vehicle is Audi.",
    "A female pedestrian is someone who walks on foot. She is in a “short” sleeve shirt with an upper logo!",
    "一只狗在草地上",
    "",
]

_TEXT: dict[str, Any] = {"context_length": 40, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}


def _open_clip(vision: dict[str, Any], text: dict[str, Any] | None = None, **top: Any) -> BackboneConfig:
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIZE, **vision},
        "text_cfg": {**_TEXT, **(text or {})},
    }
    return BackboneConfig(name="open_clip", architecture={**architecture, **top})


SMALL = {
    "open_clip": _open_clip({"patch_size": 8, "width": 16, "layers": 3, "head_width": 8}),
    "open_clip_resnet": _open_clip({"layers": [1, 1, 1, 1], "width": 8}),
    "open_clip_timm": _open_clip({"timm_model_name": "test_resnet"}),
    "open_clip_custom_text": _open_clip(
        {"patch_size": 16, "width": 16, "layers": 1, "head_width": 8, "pool_type": "avg"},
        {"proj_bias": True, "pool_type": "eos", "eos_id": 49407},
        custom_text=True,
    ),
    "chinese_clip": BackboneConfig(
        name="chinese_clip",
        architecture={
            "projection_dim": 16,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": SIZE,
                "patch_size": 8,
            },
            "text_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "vocab_size": 200,
            },
        },
    ),
    "blip": BackboneConfig(
        name="blip",
        architecture={
            "image_text_hidden_size": 16,
            "initializer_range": 0.2,  # from 0.02 the matching head would hardly see text and image
            "vision_config": {
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": SIZE,
                "patch_size": 8,
                "initializer_range": 0.2,
            },
            "text_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "vocab_size": 200,
                "initializer_range": 0.2,
            },
        },
    ),
    "resnet_roberta": BackboneConfig(
        name="resnet_roberta",
        architecture={
            "image": {"block": "basic", "layers": [1, 1, 1, 1], "width": 8},
            "image_size": SIZE,
            "text_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 66,
                "vocab_size": 600,
            },
        },
    ),
    "res2net_gpt": BackboneConfig(
        name="res2net_gpt",
        architecture={
            "image": "test_resnet",
            "image_size": SIZE,
            "text_config": {"layers": 2, "heads": 2, "width": 16, "block_size": 40},
        },
    ),
}


def changed(name: str, **architecture: Any) -> BackboneConfig:
    """The config of a tiny backbone with other keys of its architecture."""
    config = SMALL[name]
    return BackboneConfig(name=config.name, architecture={**(config.architecture or {}), **architecture})


def small_backbone(name: str = "open_clip", seed: int = 0) -> Backbone:
    """A tiny backbone by its name in SMALL, in eval mode."""
    return build(SMALL[name], seed, TEXTS).eval()


def small_member(name: str = "open_clip", **train: Any) -> MemberConfig:
    """The config of a tiny member; `train` overrides settings for two quick epochs."""
    settings = TrainConfig(**{"epochs": 2, "batch_size": 4, "lr": 1e-3, **train})
    return MemberConfig(name=name, backbone=SMALL[name], train=settings)
