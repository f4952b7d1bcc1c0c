"""Captions of images by any captioner: greedy, beam search or nucleus sampling, a batch at a time.

The batch decides about speed alone: an image gets the same caption in whatever batch it comes, and finished captions
leave the batch. Where tokens are equally probable the one with the lowest id is taken, always; between whole captions
with equal scores, the one whose first different token has the lower id.

(Logits themselves may differ in their last bits with the size of the batch, as matrix products do: a model that rates
two tokens alike up to there has no opinion that could be kept.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.captioning.beam import beam_search
from xmodal_kedro.captioning.captioner import (
    Caption,
    Captioner,
    Draft,
    State,
    Vocabulary,
    log_probabilities,
    refuse_nan,
)
from xmodal_kedro.config.decoding import DecodingConfig

__all__ = ["Caption", "Captioner", "Vocabulary", "decode", "decode_batches"]

# Rows leave when this share of a batch is over: taking rows out copies all that a model remembers of the others.
LEAVING = 0.125

Choice = Callable[[Tensor, list[int], int], Tensor]  # logits [R, V], rows, step -> ids [R]


@torch.inference_mode()
def decode(captioner: Captioner[Any], images: Tensor, decoding: DecodingConfig, first: int = 0) -> list[Caption]:
    """Caption a batch of images.

    Args:
        captioner: In eval mode, on the device of the images.
        images: [B, ...], what the captioner's `begin` takes.
        decoding: The method and its settings. Beam search follows the rules of transformers' `generate`, see there.
        first: Number of the first image among all that are captioned; nucleus sampling draws for image i of the whole
            always the same, whatever the batches are.

    Returns:
        One caption per image.

    Raises:
        FloatingPointError: The captioner gives NaN.
    """
    if not len(images):
        return []
    if decoding.method == "beam":
        drafts = beam_search(captioner, images, decoding)
    elif decoding.method == "nucleus":
        drafts = _token_by_token(captioner, images, _nucleus(len(images), decoding, first), decoding.max_steps)
    else:
        drafts = _token_by_token(captioner, images, _greedy, decoding.max_steps)
    return [draft.finished(captioner.vocabulary) for draft in drafts]


def decode_batches(captioner: Captioner[Any], batches: Iterable[Tensor], decoding: DecodingConfig) -> Iterator[Caption]:
    """Caption images [B, ...] batch by batch, in order; what they are cut into changes no caption."""
    first = 0
    for images in batches:
        yield from decode(captioner, images, decoding, first)
        first += len(images)


def _token_by_token(captioner: Captioner[State], images: Tensor, choose: Choice, max_steps: int) -> list[Draft]:
    """Captions that grow by one chosen token at a time."""
    end = captioner.vocabulary.end
    drafts = [Draft(row) for row in range(len(images))]
    present = drafts  # those that the state has rows of; some of them may be over
    state = captioner.begin(images, max_steps)
    ids = torch.full((len(images),), captioner.vocabulary.start, device=images.device)
    for step in range(max_steps):
        logits, state = captioner.step(ids, state)
        ids = choose(logits.float(), [draft.row for draft in present], step)
        gains = log_probabilities(logits).gather(1, ids[:, None])[:, 0]
        for draft, token, gain in zip(present, ids.tolist(), gains.tolist(), strict=True):
            if not draft.over:
                refuse_nan(gain, step)
                _append(draft, token, gain, end)
        staying = [place for place, draft in enumerate(present) if not draft.over]
        if not staying or step + 1 == max_steps:
            break
        if len(present) - len(staying) >= LEAVING * len(present):
            rows = torch.tensor(staying, device=ids.device)
            state, ids = captioner.select(state, rows), ids[rows]
            present = [present[place] for place in staying]
    return drafts


def _append(draft: Draft, token: int, gain: float, end: int) -> None:
    """Let a caption grow by a token of log-probability `gain`, which may be its end."""
    if gain == -float("inf"):  # every token is ruled out
        draft.over = True
        return
    draft.log_probability += gain
    if token == end:
        draft.over = draft.ended = True
    else:
        draft.ids = (*draft.ids, token)


def _greedy(logits: Tensor, rows: list[int], step: int) -> Tensor:
    return logits.argmax(1)  # the first one of equals; of probabilities, more would be equal by rounding


def _nucleus(size: int, decoding: DecodingConfig, first: int) -> Choice:
    """Draw from the fewest tokens that hold a probability of `top_p` together (arXiv 1904.09751)."""
    # A generator per image, on the CPU: neither its neighbours nor the device change what it draws.
    seeds = ([decoding.seed, first + row] for row in range(size))
    draws = np.stack([np.random.default_rng(seed).random(decoding.max_steps) for seed in seeds])  # [B, steps]

    def choose(logits: Tensor, rows: list[int], step: int) -> Tensor:
        scaled = (logits.double() / decoding.temperature).softmax(1)
        probabilities, order = scaled.sort(dim=1, descending=True, stable=True)
        outside = probabilities.cumsum(1) - probabilities >= decoding.top_p
        cumulative = probabilities.masked_fill(outside, 0.0).cumsum(1)
        target = torch.from_numpy(draws[rows, step]).to(logits.device)[:, None] * cumulative[:, -1:]
        place = (cumulative <= target).sum(1, keepdim=True)
        # Rounding may bring the target to the very end of the nucleus; never beyond it.
        place = place.minimum((~outside).sum(1, keepdim=True) - 1).clamp(min=0)
        return order.gather(1, place)[:, 0]

    return choose
