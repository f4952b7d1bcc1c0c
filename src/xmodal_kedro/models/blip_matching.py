"""BLIP's matching of many texts with the same images: what is common is computed once, and padding not at all.

Transformers projects the image to keys and values again for every pair and pads every text to the longest. Here the
keys and values of all layers are an image's memory, made once. The tokens of all pairs are rows of one matrix, texts of
equal length beside each other: linear layers see no padding, texts of equal length attend to themselves together, and
the rows of all texts of an image attend to its memory together, which is not copied. After the last attention to the
text itself only [ENC] is followed, since nothing else is read. Scores are those of transformers but for the rounding
of fp32. Nothing here has dropout: it is for inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def keys_and_values(text_encoder: Any, states: Tensor) -> tuple[Tensor, ...]:
    """Keys and values of the images in every layer of the text encoder.

    Args:
        text_encoder: BlipTextModel of transformers.
        states: [B, T, C] of the image tower.

    Returns:
        2 * layers tensors [B, T, H]: of each layer the keys, then the values.
    """
    attentions = [layer.crossattention.self for layer in text_encoder.encoder.layer]
    return tuple(project(states) for attention in attentions for project in (attention.key, attention.value))


def first_states(
    text_encoder: Any, memory: tuple[Tensor, ...], images: Tensor, ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Last states of the first token of texts that look at images.

    Args:
        text_encoder: BlipTextModel of transformers.
        memory: Of `keys_and_values`.
        images: [P] int64, which image of `memory` text i looks at.
        ids: [P, L] of the texts.
        attention_mask: [P, L], 1 for the tokens of a text, which come first, and 0 for its padding.

    Returns:
        [P, H].
    """
    order, pairs = _by_length(images, attention_mask)
    ids, used = ids[order], attention_mask[order].bool()
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    rows = text_encoder.embeddings(input_ids=ids[used][None], position_ids=positions[used][None])[0]  # [R, H]
    layers = text_encoder.encoder.layer
    for number, layer in enumerate(layers):
        attention, looking = layer.attention, layer.crossattention
        asking, width = rows, pairs.rows_of_image
        if last := number == len(layers) - 1:
            asking, width = rows[pairs.first_rows], pairs.pairs_of_image
        rows = attention.output(_among_themselves(attention.self, asking, rows, pairs, only_first=last), asking)
        seen = _at_images(looking.self, rows, memory[2 * number], memory[2 * number + 1], width)
        rows = layer.feed_forward_chunk(looking.output(seen, rows))
    return torch.empty_like(rows).index_copy_(0, order, rows)


@dataclass(frozen=True)
class _Pairs:
    """Where the tokens of pairs, sorted by length, lie in a matrix of rows.

    Attributes:
        lengths: (pairs, tokens of each) of every run of pairs of equal length.
        first_rows: [P] row of the first token of each pair.
        rows_of_image: (place in the memory, rows of all tokens of its pairs) of every image.
        pairs_of_image: (place in the memory, its pairs) of every image.
    """

    lengths: list[tuple[int, int]]
    first_rows: Tensor
    rows_of_image: list[tuple[int, Tensor]]
    pairs_of_image: list[tuple[int, Tensor]]


def _by_length(images: Tensor, attention_mask: Tensor) -> tuple[Tensor, _Pairs]:
    """The order [P] of pairs by length, and where their tokens are then."""
    length, order = attention_mask.sum(1).sort(stable=True)
    image = images[order]
    runs = torch.stack(torch.unique_consecutive(length, return_counts=True)).tolist()
    return order, _Pairs(
        lengths=[(count, tokens) for tokens, count in zip(*runs, strict=True)],
        first_rows=length.cumsum(0) - length,
        rows_of_image=_places(image.repeat_interleave(length)),
        pairs_of_image=_places(image),
    )


def _places(image: Tensor) -> list[tuple[int, Tensor]]:
    """Each image that is named, and where."""
    places = image.argsort(stable=True)
    names, counts = torch.unique_consecutive(image[places], return_counts=True)
    return list(zip(names.tolist(), places.split(counts.tolist()), strict=True))


def _among_themselves(attention: Any, asking: Tensor, rows: Tensor, pairs: _Pairs, *, only_first: bool) -> Tensor:
    """Attention of every text to itself, or of its first token.

    Args:
        attention: BlipTextSelfAttention.
        asking: [R, H] states of all tokens, or [P, H] of the first ones.
        rows: [R, H].
        pairs: Where they lie.
        only_first: Whether the first tokens ask.
    """
    query, key, value = attention.query(asking), attention.key(rows), attention.value(rows)
    parts = []
    of_query = of_rows = 0
    for count, tokens in pairs.lengths:
        width = 1 if only_first else tokens
        texts = query[of_query : (of_query := of_query + count * width)].view(count, width, -1)
        span = slice(of_rows, of_rows := of_rows + count * tokens)
        found = _attend(attention, texts, key[span].view(count, tokens, -1), value[span].view(count, tokens, -1))
        parts.append(found.flatten(0, 1))
    return torch.cat(parts)


def _at_images(attention: Any, rows: Tensor, key: Tensor, value: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """Attention of rows [R, H] to the image that each belongs to, of keys and values [B, T, H]."""
    query = attention.query(rows)
    seen = torch.empty_like(query)
    for image, of_image in places:
        found = _attend(attention, query[of_image][None], key[image][None], value[image][None])
        seen.index_copy_(0, of_image, found[0])
    return seen


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, Q, H] over [B, T, H], head by head."""
    query, key, value = (side.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
                         for side in (query, key, value))  # fmt: skip
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
