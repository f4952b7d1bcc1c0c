"""Matching of BLIP (arXiv 2201.12086) for one image and one text at a time: BERT's formulas, head by head, in fp64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def match_logit(
    weights: Weights, states: Tensor, ids: Sequence[int], layers: int, heads: int, eps: float = 1e-12
) -> float:
    """Logit that a text is right for an image.

    Args:
        weights: State of BlipForImageTextRetrieval.
        states: [T, C] of the image.
        ids: Of the text, [ENC] first, without padding.
        layers: Of the text encoder.
        heads: Of each attention.
        eps: Of the layer norms.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    at = "text_encoder.embeddings."
    rows = [
        norm(
            weights,
            at + "LayerNorm",
            weights[at + "word_embeddings.weight"][token] + weights[at + "position_embeddings.weight"][place],
            eps,
        )
        for place, token in enumerate(ids)
    ]
    for number in range(layers):
        at = f"text_encoder.encoder.layer.{number}."
        rows = attended(weights, at + "attention.", rows, rows, heads, eps)
        rows = attended(weights, at + "crossattention.", rows, list(states.double()), heads, eps)
        rows = [
            norm(
                weights,
                at + "output.LayerNorm",
                row + dense(weights, at + "output.dense", F.gelu(dense(weights, at + "intermediate.dense", row))),
                eps,
            )
            for row in rows
        ]
    return float(dense(weights, "itm_head", rows[0])[1])


def dense(weights: Weights, name: str, row: Tensor) -> Tensor:
    return weights[name + ".weight"] @ row + weights[name + ".bias"]


def norm(weights: Weights, name: str, row: Tensor, eps: float) -> Tensor:
    centred = row - row.mean()
    return centred / torch.sqrt((centred**2).mean() + eps) * weights[name + ".weight"] + weights[name + ".bias"]


def attended(
    weights: Weights, at: str, rows: Sequence[Tensor], seen: Sequence[Tensor], heads: int, eps: float
) -> list[Tensor]:
    """softmax(q k / sqrt(d)) v of every head, side by side, projected, added and normalised."""
    keys = [dense(weights, at + "self.key", row).chunk(heads) for row in seen]
    values = [dense(weights, at + "self.value", row).chunk(heads) for row in seen]
    results = []
    for row in rows:
        query = dense(weights, at + "self.query", row).chunk(heads)
        parts = []
        for head in range(heads):
            logits = torch.stack([query[head] @ key[head] for key in keys]) / np.sqrt(len(query[head]))
            shares = torch.exp(logits) / torch.exp(logits).sum()
            parts.append(sum(share * value[head] for share, value in zip(shares, values, strict=True)))
        projected = dense(weights, at + "output.dense", torch.cat(parts))
        results.append(norm(weights, at + "output.LayerNorm", projected + row, eps))
    return results
