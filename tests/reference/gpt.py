"""The GPT of the captioning system one place, one head and one token at a time, from its formulas, in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def embedded(weights: Weights, ids: Sequence[int]) -> list[Tensor]:
    """Token embedding + embedding of its position, the first token at position 0."""
    return [weights["tokens.weight"][token] + weights["positions"][place] for place, token in enumerate(ids)]


def states(weights: Weights, rows: Sequence[Tensor], layers: int, heads: int) -> list[Tensor]:
    """Output of the last block at each place; a place attends to itself and to what came before."""
    rows = list(rows)
    for layer in range(layers):
        at = f"blocks.{layer}."
        seen = [norm(weights, at + "attention_norm", row) for row in rows]
        rows = [row + attended(weights, at, seen[: place + 1], heads) for place, row in enumerate(rows)]
        rows = [row + thought(weights, at, norm(weights, at + "mlp_norm", row)) for row in rows]
    return rows


def logits(weights: Weights, state: Tensor) -> Tensor:
    return weights["head.weight"] @ norm(weights, "norm", state) + weights["head.bias"]


def caption_logits(weights: Weights, image: Tensor, ids: Sequence[int], layers: int, heads: int) -> list[Tensor]:
    """Logits of every token of a caption; the image stands, without a position, before the first one."""
    rows = states(weights, [image, *embedded(weights, ids[:-1])], layers, heads)
    return [logits(weights, row) for row in rows]


def norm(weights: Weights, name: str, row: Tensor) -> Tensor:
    centred = row - row.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weights[name + ".weight"] + weights[name + ".bias"]


def attended(weights: Weights, at: str, seen: Sequence[Tensor], heads: int) -> Tensor:
    """The last of `seen` attends to all: softmax(q k / sqrt(width)) v of every head, side by side, projected."""
    width = len(seen[0])
    matrices = weights[at + "attention.queries_keys_values.weight"]
    query_of, key_of, value_of = matrices[:width], matrices[width : 2 * width], matrices[2 * width :]
    size = width // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        query = query_of[own] @ seen[-1]
        shares = [torch.exp(query @ (key_of[own] @ other) / math.sqrt(width)) for other in seen]
        values = [value_of[own] @ other for other in seen]
        parts.append(sum(share / sum(shares) * value for share, value in zip(shares, values, strict=True)))
    return weights[at + "attention.output.weight"] @ torch.cat(parts) + weights[at + "attention.output.bias"]


def thought(weights: Weights, at: str, row: Tensor) -> Tensor:
    """The MLP, with the Gaussian error linear unit x P(X <= x)."""
    wide = weights[at + "mlp.0.weight"] @ row + weights[at + "mlp.0.bias"]
    active = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    return weights[at + "mlp.2.weight"] @ active + weights[at + "mlp.2.bias"]
