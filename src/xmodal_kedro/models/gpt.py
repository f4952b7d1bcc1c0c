"""The GPT of the captioning system: states of embedded sequences, whole or step by step with the same result.

Blocks as in GPT-2 (Radford et al. 2019): layer norm first, exact GELU, MLPs of four times the width. Three things
differ, as published: queries, keys and values have no bias, scores are scaled by 1 / sqrt(width) and not by the width
of a head, and the layer to the vocabulary is not tied to the token embedding. Position embeddings start as zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kedro.config.frozen import Frozen

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

INITIAL_STD = 0.02  # of GPT-2; the published initial weights are not known


class GPTSizes(Frozen):
    """Sizes of a GPT; all but the vocabulary's are the published ones."""

    vocab_size: int = Field(ge=1)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    width: int = Field(768, ge=1)
    block_size: int = Field(100, ge=1, description="positions of tokens; an image vector takes none")
    dropout: float = Field(0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads: make it a multiple of heads")
        return self


class Cache:
    """Keys and values of all that a GPT has read, with room for what it will read.

    Room is made once, so a step writes its own place and copies nothing. That is also why a sequence cannot be
    continued in two ways from one cache: `gather` its row twice first. No gradient goes back through more than one
    step.
    """

    def __init__(self, size: int) -> None:
        """Make an empty one for sequences of at most `size` places; memory is taken at the first use."""
        self.size = size
        self.length = 0  # places that are filled, the same in all rows
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values [B, H, size, D]
        self._spare: Tensor | None = None  # room of rows that were gathered, for those that are gathered next

    def open(self, rows: int, places: int) -> None:
        """Announce further places, before `extend` per layer and `close`.

        Args:
            rows: B.
            places: P, how many; one at a time after the first ones.

        Raises:
            ValueError: There is no room for so many, they are several, or the rows are not those of the earlier places.
        """
        if self.length + places > self.size:
            raise ValueError(
                f"a cache of {self.size} places, {self.length} of them filled, has no room for {places} more: make it "
                "larger, or end the captions earlier"
            )
        if self.length and places != 1:
            raise ValueError(f"a cache that has begun is continued one place at a time, and not with {places}")
        if self._layers and rows != len(self._layers[0][0]):
            raise ValueError(f"a cache of {len(self._layers[0][0])} rows cannot be continued with {rows}: gather first")

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, P, D] of a layer; returns those of all places [B, H, length + P, D]."""
        if layer == len(self._layers):
            rows, heads, _, width = keys.shape
            room = (rows, heads, self.size, width)
            self._layers.append((keys.new_empty(room), values.new_empty(room)))
        all_keys, all_values = self._layers[layer]
        end = self.length + keys.shape[2]
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def close(self, places: int) -> None:
        """Count places that all layers have written."""
        self.length += places

    def gather(self, rows: Tensor) -> Self:
        """Put rows [R] in the place of all, in this order; rows may repeat, be left out, or be none.

        Layers take turns at one spare room: fresh memory for each would cost many times what the copying does.
        """
        self._layers = [(self._taken(keys, rows), self._taken(values, rows)) for keys, values in self._layers]
        return self

    def _taken(self, stored: Tensor, rows: Tensor) -> Tensor:
        """Rows of [B, H, size, D], whose room is the next spare one; only the filled places are copied."""
        spare, self._spare = self._spare, stored
        if spare is None or len(spare) < len(rows):
            spare = stored.new_empty(len(rows), *stored.shape[1:])
        taken = spare[: len(rows)]
        torch.index_select(stored[:, :, : self.length], 0, rows, out=taken[:, :, : self.length])
        return taken


class Attention(nn.Module):
    """Self-attention of several heads, scaled by the whole width as published."""

    def __init__(self, sizes: GPTSizes) -> None:
        """Make one with random weights."""
        super().__init__()
        self.heads, self.scale, self.dropout = sizes.heads, 1 / math.sqrt(sizes.width), sizes.dropout
        self.queries_keys_values = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, states: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """States [B, L, W] to [B, L, W]; no place looks ahead."""
        rows, length, width = states.shape
        heads = self.queries_keys_values(states).view(rows, length, 3, self.heads, width // self.heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, L, D] each
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=length == keys.shape[2],  # a step looks at all that came before
            scale=self.scale,
        )
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(rows, length, width))
        return attended


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to what came in."""

    def __init__(self, sizes: GPTSizes) -> None:
        """Make one with random weights."""
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(sizes.width), Attention(sizes)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.mlp = nn.Sequential(
            nn.Linear(sizes.width, 4 * sizes.width), nn.GELU(), nn.Linear(4 * sizes.width, sizes.width)
        )
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, states: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """States [B, L, W] to [B, L, W]."""
        states = states + self.dropout(self.attention(self.attention_norm(states), cache, layer))
        after: Tensor = states + self.dropout(self.mlp(self.mlp_norm(states)))
        return after


class GPT(nn.Module):
    """`tokens` and `positions` embed, `blocks` think, `norm` and `head` give logits over the vocabulary."""

    def __init__(self, sizes: GPTSizes) -> None:
        """Make one with random weights, from torch's global generator."""
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.width)
        self.positions = nn.Parameter(torch.zeros(sizes.block_size, sizes.width))
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed tokens and where they stand.

        Args:
            ids: [B, L].
            start: Position of the first column.

        Returns:
            [B, L, W].

        Raises:
            ValueError: The last position is none of the `block_size`.
        """
        last = start + ids.shape[1]
        if last > self.sizes.block_size:
            raise ValueError(
                f"a text of {last} tokens does not fit the {self.sizes.block_size} positions of this GPT: cut texts at "
                "block_size tokens, or build the GPT with a larger block_size"
            )
        embedded: Tensor = self.tokens(ids) + self.positions[start:last]
        return embedded

    def forward(self, embedded: Tensor, cache: Cache | None = None) -> Tensor:
        """States of a sequence, each of which knows itself and what came before.

        Padding on the right needs no mask: nothing looks ahead.

        Args:
            embedded: [B, L, W].
            cache: Of what came before, if anything did; it is extended by these places.

        Returns:
            Output of the last block [B, L, W], before the final layer norm: the published sentence feature is taken
            there.
        """
        rows, length, _ = embedded.shape
        if cache is not None:
            cache.open(rows, length)
        states: Tensor = self.dropout(embedded)
        for layer, block in enumerate(self.blocks):
            states = block(states, cache, layer)
        if cache is not None:
            cache.close(length)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """[.., W] -> [.., V]."""
        logits: Tensor = self.head(self.norm(states))
        return logits


@torch.no_grad()
def as_gpt2(gpt: GPT, *, start: int, end: int, padding: int) -> GPT2LMHeadModel:
    """Copy a GPT into transformers' GPT-2, which then gives the same logits.

    It expects one embedded vector without position, such as an image, before the tokens, which is its position 0;
    queries make up for the other scale of its scores. Its head gets the bias that ours has.

    Args:
        gpt: Whose weights are copied.
        start: Token that begins a text, for `generate`.
        end: Token that ends a text.
        padding: Token after the end.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = gpt.sizes
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=1 + sizes.block_size,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        activation_function="gelu",
        resid_pdrop=sizes.dropout,
        embd_pdrop=sizes.dropout,
        attn_pdrop=sizes.dropout,
        layer_norm_epsilon=gpt.norm.eps,
        tie_word_embeddings=False,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=padding,
    )
    model: Any = GPT2LMHeadModel(config)  # whose methods are typed as if they were functions
    model.lm_head = nn.Linear(sizes.width, sizes.vocab_size)
    ours = gpt.state_dict()
    theirs = {
        "transformer.wte.weight": ours["tokens.weight"],
        "transformer.wpe.weight": F.pad(ours["positions"], (0, 0, 1, 0)),
        **{f"transformer.ln_f.{part}": ours[f"norm.{part}"] for part in ("weight", "bias")},
        **{f"lm_head.{part}": ours[f"head.{part}"] for part in ("weight", "bias")},
    }
    pairs = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
    transposed = {"attn.c_proj": "attention.output", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}
    scale = math.sqrt(1 / sizes.heads)  # sqrt(head width / width)
    for layer in range(sizes.layers):
        to, of = f"transformer.h.{layer}.", f"blocks.{layer}."
        for name, own in (pairs | transposed).items():
            weight = ours[f"{of}{own}.weight"]
            theirs[f"{to}{name}.weight"] = weight.T if name in transposed else weight
            theirs[f"{to}{name}.bias"] = ours[f"{of}{own}.bias"]
        queries, keys, values = ours[f"{of}attention.queries_keys_values.weight"].chunk(3)
        theirs[f"{to}attn.c_attn.weight"] = torch.cat([queries * scale, keys, values]).T
        theirs[f"{to}attn.c_attn.bias"] = queries.new_zeros(3 * sizes.width)
    model.load_state_dict(theirs)
    copy: GPT2LMHeadModel = model.to(gpt.positions.device, gpt.positions.dtype).train(gpt.training)
    return copy
