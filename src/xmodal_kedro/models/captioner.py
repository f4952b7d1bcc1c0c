"""An image encoder and a GPT that write captions: logits of whole captions for training, of one step for decoding.

The sequence is the published one: the image vector, without position, in the place before the first token; the place of
the image predicts the first token, [CLS], and every other place predicts the token after it.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kedro.models.characters import PAD, Characters
from xmodal_kedro.models.gpt import GPT, Cache


class Captioner(nn.Module):
    """Training calls the module; a decoder calls `begin`, then `step` per token, and `select` between steps.

    Wherever images are asked for, pixels [B, 3, H, W] and vectors [B, W] that were encoded before are taken alike: a
    frozen encoder, or several captions of an image, need each image once.
    """

    def __init__(self, image_encoder: nn.Module, gpt: GPT, vocabulary: Characters) -> None:
        """Join an encoder of pixels [B, 3, H, W] to [B, W] and a GPT of width W, which may be shared with others.

        Raises:
            ValueError: The GPT was made for another number of tokens.
        """
        super().__init__()
        if len(vocabulary) != gpt.sizes.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(vocabulary)} tokens, and the GPT was made for {gpt.sizes.vocab_size}: use "
                "the vocabulary of the checkpoint that the GPT comes from"
            )
        self.image_encoder, self.gpt, self.vocabulary = image_encoder, gpt, vocabulary

    def encode(self, images: Tensor) -> Tensor:
        """Images to vectors [B, W]; vectors stay as they are.

        Raises:
            ValueError: The vectors are not as wide as the GPT.
        """
        vectors: Tensor = images if images.dim() == 2 else self.image_encoder(images)
        if vectors.shape[1:] != (self.gpt.sizes.width,):
            raise ValueError(
                f"images became vectors of shape {tuple(vectors.shape[1:])}, and the GPT reads a width of "
                f"{self.gpt.sizes.width}: end the image encoder with a projection to it"
            )
        return vectors

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, L, V] of every token of captions [B, L], each from the image and the tokens before it."""
        embedded = torch.cat([self.encode(images)[:, None], self.gpt.embed(ids[:, :-1])], dim=1)
        return self.gpt.logits(self.gpt(embedded))

    def train(self, mode: bool = True) -> Self:
        """As in torch, but a frozen image encoder stays in eval: no dropout, no batch statistics."""
        super().train(mode)
        frozen = [not parameter.requires_grad for parameter in self.image_encoder.parameters()]
        if frozen and all(frozen):
            self.image_encoder.eval()
        return self

    @torch.no_grad()
    def begin(self, images: Tensor, steps: int | None = None) -> Cache:
        """Look at images, one row of the state for each.

        Args:
            images: Pixels or vectors.
            steps: Tokens at most that will follow; without it, as many as the GPT has positions.

        Raises:
            ValueError: The GPT has fewer positions than `steps`.
        """
        positions = self.gpt.sizes.block_size
        if steps is not None and steps > positions:
            raise ValueError(
                f"captioning.decoding.max_steps is {steps}: this captioner writes {positions} tokens at most, the "
                "block_size of its member's text_config"
            )
        state = Cache(1 + (positions if steps is None else steps))
        self.gpt(self.encode(images)[:, None], cache=state)
        return state

    @torch.no_grad()
    def step(self, ids: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """Read one more token of each row [B], the first one being the start; logits [B, V] of the next.

        The state that comes back is the given one, extended: there is no second step from where it was.
        """
        embedded = self.gpt.embed(ids[:, None], state.length - 1)
        return self.gpt.logits(self.gpt(embedded, cache=state)[:, 0]), state

    @torch.no_grad()
    def select(self, state: Cache, rows: Tensor) -> Cache:
        """The given state with these rows [R] of it alone: for beams, and to drop captions that have ended."""
        return state.gather(rows)


def caption_loss(logits: Tensor, ids: Tensor, *, padding: int = PAD, ignore_padding: bool = True) -> Tensor:
    """Cross-entropy of captions, averaged over tokens; the softmax runs in fp32.

    Args:
        logits: [B, L, V] as the captioner gives them.
        ids: [B, L], the same captions.
        padding: Its id.
        ignore_padding: False is the published behaviour: most of what is learned then is that padding follows
            padding, and the loss of short captions looks small.

    Returns:
        A scalar, 0 where no token counts.
    """
    ignored = padding if ignore_padding else -1  # no token has it
    total = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), ignore_index=ignored, reduction="sum")
    return total / (ids != ignored).sum().clamp(min=1)
