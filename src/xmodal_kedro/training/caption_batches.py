"""Which captions meet in a batch, and what is read for it: every image once, however many of its captions are there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.training.batches import image_rows_of, pinned


@dataclass(frozen=True)
class CaptionBatch:
    """A process's share of a batch."""

    images: Tensor  # [I, S, S, 3] uint8 packed squares, or vectors [I, W]
    own: Tensor | None  # [J] those of `images` that this process needs, where the others' are there too
    which: Tensor  # [B] the image of each caption, among those that this process needs
    ids: Tensor  # [B, L] with L the longest caption, or all positions where padding counts
    captions: int  # of all processes
    weight: float  # the mean of weight * loss over processes is the loss of all tokens


class Captions:
    """Captions with their images; texts are tokenised once."""

    def __init__(
        self,
        vocabulary: Characters,
        images: np.ndarray,
        examples: pd.DataFrame,
        positions: int,
        *,
        counts_padding: bool = False,
    ) -> None:
        """Tokenise every distinct text.

        Args:
            vocabulary: Of the captioner.
            images: [N, S, S, 3] uint8, may be memory-mapped; or vectors [N, W].
            examples: Columns `text` and `image_row` (row of `images`).
            positions: Tokens of a caption at most, the start and the end included; longer ones are cut, and keep an
                end.
            counts_padding: Whether padding is to be predicted too: then captions are padded to all positions, for the
                loss would depend on the company of a caption otherwise.

        Raises:
            ValueError: There are no examples, a text is null, or an image row does not exist.
        """
        if examples.empty:
            raise ValueError("there are no captions to train on")
        self.image_rows = image_rows_of(examples, len(images))
        self.images = images
        self.counts_padding = counts_padding
        texts, distinct = pd.factorize(examples["text"])
        tokens = vocabulary.batch([str(text) for text in distinct], positions)
        self.texts = texts
        self.lengths = tokens["attention_mask"].sum(1)[torch.from_numpy(texts)].numpy()  # [C]
        width = positions if counts_padding else tokens["input_ids"].shape[1]
        self.ids = torch.full((len(distinct), width), vocabulary.pad, dtype=torch.int32)
        self.ids[:, : tokens["input_ids"].shape[1]] = tokens["input_ids"]
        self.cut = int((examples["text"].str.len() > positions - 2).sum())

    def __len__(self) -> int:
        """Captions."""
        return len(self.texts)

    def read(self, rows: np.ndarray, device: torch.device, *, all_images: bool = False) -> CaptionBatch:
        """Read this process's share of a batch, ready to be sent to `device`.

        Every caption is some process's, though a share may be smaller than the others by one; where there are fewer
        captions than processes, one without gets the first, which weighs nothing.

        Args:
            rows: [B] of the whole batch, the same in all processes; captions of one image side by side.
            device: Where the batch is going.
            all_images: Also those of the other processes, for random views are drawn for the batch as a whole.
        """
        share = np.array_split(rows, processes())[rank()]
        tokens, all_tokens = self._tokens(share), self._tokens(rows)
        mine = share if len(share) else rows[:1]
        images, which = np.unique(self.image_rows[mine], return_inverse=True)
        own = None
        if all_images:
            everything = np.unique(self.image_rows[rows])
            own, images = torch.from_numpy(np.searchsorted(everything, images)), everything
        longest = self.ids.shape[1] if self.counts_padding else int(self.lengths[mine].max())
        ids = self.ids[torch.from_numpy(self.texts[mine])][:, :longest].long()
        return CaptionBatch(
            images=pinned(torch.from_numpy(np.ascontiguousarray(self.images[images])), device),
            own=own,
            which=pinned(torch.from_numpy(which), device),
            ids=pinned(ids, device),
            captions=len(rows),
            weight=processes() * tokens / all_tokens,
        )

    def _tokens(self, rows: np.ndarray) -> int:
        """Tokens of captions that a loss counts."""
        return len(rows) * self.ids.shape[1] if self.counts_padding else int(self.lengths[rows].sum())


def deal_captions(
    images: np.ndarray, batch_size: int, together: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Deal captions to batches, `together` of an image at a time.

    An image whose captions are no multiple of `together` has a smaller hand besides. Hands are never torn. Batches are
    as few as they can be, and as even: large hands are dealt first, forth and back.

    Args:
        images: [N] the image of each caption, as integers.
        batch_size: Captions at most.
        together: Captions of an image that are dealt as one hand; 1 means a plain shuffle.
        generator: Decides which captions make a hand, and the order of everything.

    Returns:
        Arrays of rows, together `arange(N)`; within each the captions of an image are side by side.

    Raises:
        ValueError: A hand is larger than a batch.
    """
    if together > batch_size:
        raise ValueError(
            f"train.captions_per_image {together} is more than train.batch_size {batch_size}: lower the one, or raise "
            "the other"
        )
    shuffled = generator.permutation(len(images))
    rows = shuffled[np.argsort(images[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(images[rows], prepend=images[rows[:1]] - 1))
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))  # among those of the image
    hand = np.cumsum(place % together == 0) - 1
    sizes = np.bincount(hand)
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    batches = max(math.ceil(len(rows) / batch_size), math.ceil((sizes == together).sum() / (batch_size // together)))
    while np.bincount(turn := _forth_and_back(len(order), batches), weights=sizes[order]).max() > batch_size:
        batches += 1
    batch_of_hand = np.empty_like(turn)
    batch_of_hand[order] = turn
    batch = batch_of_hand[hand]
    dealt = np.split(rows[np.argsort(batch, kind="stable")], np.cumsum(np.bincount(batch))[:-1])
    return [dealt[number] for number in generator.permutation(batches)]


def _forth_and_back(count: int, batches: int) -> np.ndarray:
    """0, 1, 2, 2, 1, 0, 0, 1, ... for three batches, `count` numbers."""
    turn = np.arange(count) % (2 * batches)
    return np.minimum(turn, 2 * batches - 1 - turn)
