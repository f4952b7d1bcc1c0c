"""BLIP's published weights (model_large.pth and its kin) under the names of transformers, for any image size.

They hold what the model was trained with besides: momentum encoders, queues and a text decoder, which retrieval does
not want.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipConfig

from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models.published import load_published, read_published

PUBLISHED = tuple(
    f"model{name}.pth"
    for name in (
        *("_large", "_base", "_base_14M", "_base_capfilt_large", "_base_retrieval_coco", "_base_retrieval_flickr"),
        *("_large_retrieval_coco", "_large_retrieval_flickr"),
    )
)
POSITIONS = "vision_model.embeddings.position_embedding"  # [1, 1 + grid * grid, C]
HEAD_WIDTH = 64  # channels of an attention head in every published size

# Buffers, and what training alone has.
_LEFT_OUT = re.compile(r"\w+_m\..*|\w*_queue|queue_ptr|ptr_queue|text_decoder.*|.*\.position_ids")
_RENAMED = (
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", POSITIONS),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
)


def name_in_transformers(name: str) -> str | None:
    """The name that a published tensor has in transformers, whose own names stay; None where retrieval has no use."""
    if _LEFT_OUT.fullmatch(name):
        return None
    for pattern, replacement in _RENAMED:
        name, done = re.subn(pattern, replacement, name)
        if done:
            break
    return name


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a weight file of the hub or of BLIP's authors, converting the latter once to safetensors.

    Returns:
        Tensor by its name in transformers. `temp`, the divisor of the cosines, which transformers does not have, is
        turned to `logit_scale`, the logarithm of the factor on them.

    Raises:
        PublishedWeightsError: The file cannot be read.
    """
    read = read_published(file) if file.suffix == ".safetensors" else load_published(file, name_in_transformers)
    tensors = {name: tensor for name, tensor in read.items() if name_in_transformers(name)}
    if "temp" in tensors:
        tensors["logit_scale"] = -tensors.pop("temp").float().log()
    return tensors


def config_of(tensors: Mapping[str, Tensor], file: Path) -> BlipConfig:
    """The config of published tensors, renamed: sizes from their shapes, the rest as BLIP sets it.

    Args:
        tensors: As `read_weights` gives them.
        file: Named in errors.

    Raises:
        BrokenArtifactError: They are not those of a BLIP retrieval model.
    """
    try:
        layers = {
            tower: 1 + max((int(name.split(".")[3]) for name in tensors if name.startswith(prefix)), default=0)
            for tower, prefix in (("vision", "vision_model.encoder.layers."), ("text", "text_encoder.encoder.layer."))
        }
        embed_dim, width = tensors["vision_proj.weight"].shape
        patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
        vocabulary, text_width = tensors["text_encoder.embeddings.word_embeddings.weight"].shape
        return BlipConfig(
            image_text_hidden_size=embed_dim,
            vision_config={
                "hidden_size": width,
                "intermediate_size": len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]),
                "num_hidden_layers": layers["vision"],
                "num_attention_heads": max(1, width // HEAD_WIDTH),
                "image_size": patch * math.isqrt(tensors[POSITIONS].shape[1] - 1),
                "patch_size": patch,
                "layer_norm_eps": 1e-6,
            },
            text_config={
                "vocab_size": vocabulary,
                "hidden_size": text_width,
                "intermediate_size": len(tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"]),
                "num_hidden_layers": layers["text"],
                "num_attention_heads": max(1, text_width // HEAD_WIDTH),
                "max_position_embeddings": len(tensors["text_encoder.embeddings.position_embeddings.weight"]),
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
            },
        )
    except (KeyError, ValueError) as error:
        raise BrokenArtifactError(f"{file} holds no BLIP model with heads for retrieval: {error} is wanted") from error


def resize_positions(table: Tensor, positions: int) -> Tensor:
    """Interpolate the position embedding of a square grid for another one, bicubically, as BLIP does.

    Args:
        table: [1, 1 + G * G, C]; the first row, of [CLS], stays.
        positions: 1 + N * N.

    Returns:
        [1, positions, C].
    """
    if table.shape[1] == positions:
        return table
    old, new = math.isqrt(table.shape[1] - 1), math.isqrt(positions - 1)
    grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)  # [1, C, G, G]
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
