"""Which captions meet in a batch, and what is read for it: every image once, however many of its captions are there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.losses.gather import processes, rank
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.training.batches import image_rows_of, pinned


@dataclass(frozen=True)
class Images:
    """Images on their way to the captioner."""

    images: Tensor  # [I, S, S, 3] uint8 packed squares, or vectors [I, W]; pinned
    own: Tensor | None  # [J] which of them this process shows, and in which order, if not all as they are


class Views:
    """How images are shown: random views of packed squares, or vectors as they are."""

    def __init__(self, source: np.ndarray, transform: ImageTransform | None, seed: int, device: torch.device) -> None:
        """Take images [N, S, S, 3], may be memory-mapped, and their transform, or vectors [N, W] and none."""
        self.source, self.transform, self.device = source, transform, device
        self.generator = torch.Generator().manual_seed(seed)
        # Random views are drawn for the images of all processes, so that no view depends on who shows it.
        self.of_all = processes() > 1 and transform is not None and transform.augment not in (None, AugmentConfig())

    def read(self, own: np.ndarray, of_batch: np.ndarray) -> Images:
        """Read each image once, in the order on disk.

        Args:
            own: [J] rows that this process shows.
            of_batch: Rows that all processes show.
        """
        rows = np.unique(of_batch if self.of_all else own)
        images = pinned(torch.from_numpy(np.ascontiguousarray(self.source[rows])), self.device)
        return Images(images, None if np.array_equal(rows, own) else torch.from_numpy(np.searchsorted(rows, own)))

    def show(self, read: Images) -> Tensor:
        """What the captioner looks at, [J, 3, H, W] or [J, W], on the device."""
        images = read.images.to(self.device, non_blocking=True)
        if self.transform is not None:
            with torch.autocast(self.device.type, enabled=False):  # pixels are not what precision can be saved on
                images = self.transform(images, self.generator)
        return images if read.own is None else images[read.own.to(self.device)]


@dataclass(frozen=True)
class Share:
    """Captions of a batch that are one process's."""

    images: np.ndarray  # [J] their images' rows, each once
    which: Tensor  # [B] the image of each caption, among these
    ids: Tensor  # [B, L] with L the longest caption, or all positions where padding counts
    weight: float  # the mean of weight * loss over processes is the loss of all tokens


class Captions:
    """Captions and the rows of their images; texts are tokenised once."""

    def __init__(
        self,
        vocabulary: Characters,
        examples: pd.DataFrame,
        images: int,
        positions: int,
        *,
        counts_padding: bool = False,
    ) -> None:
        """Tokenise every distinct text.

        Args:
            vocabulary: Of the captioner.
            examples: Columns `text` and `image_row`.
            images: How many there are.
            positions: Tokens of a caption at most, the start and the end included; longer ones are cut, and keep an
                end.
            counts_padding: Whether padding is to be predicted too: then captions are padded to all positions, for the
                loss would depend on the company of a caption otherwise.

        Raises:
            ValueError: There are no examples, a text is null, or an image row does not exist.
        """
        if examples.empty:
            raise ValueError("there are no captions to train on")
        self.image_rows = image_rows_of(examples, images)
        self.counts_padding = counts_padding
        texts, distinct = pd.factorize(examples["text"])
        tokens = vocabulary.batch([str(text) for text in distinct], positions)
        self.texts = texts
        self.lengths = tokens["attention_mask"].sum(1)[torch.from_numpy(texts)].numpy()  # [C]
        width = positions if counts_padding else tokens["input_ids"].shape[1]
        self.ids = torch.full((len(distinct), width), vocabulary.pad, dtype=torch.int32)
        self.ids[:, : tokens["input_ids"].shape[1]] = tokens["input_ids"]
        self.cut = int((examples["text"].str.len() > positions - 2).sum())
        unknown = (tokens["input_ids"] == vocabulary.unknown).sum(1)[torch.from_numpy(texts)]
        self.unknown = float(unknown.sum() / self.lengths.sum())  # share of the tokens

    def __len__(self) -> int:
        """Captions."""
        return len(self.texts)

    def share(self, rows: np.ndarray) -> Share:
        """This process's share of a batch.

        Every caption is some process's, though a share may be smaller than the others by one; where there are fewer
        captions than processes, one without gets the first, which weighs nothing.

        Args:
            rows: [B] of the whole batch, the same in all processes; captions of one image side by side.
        """
        share = np.array_split(rows, processes())[rank()]
        weight = processes() * self._tokens(share) / self._tokens(rows)
        mine = share if len(share) else rows[:1]
        images, which = np.unique(self.image_rows[mine], return_inverse=True)
        longest = self.ids.shape[1] if self.counts_padding else int(self.lengths[mine].max())
        ids = self.ids[torch.from_numpy(self.texts[mine])][:, :longest].long()
        return Share(images, torch.from_numpy(which), ids, weight)

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
