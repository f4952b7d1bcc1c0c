"""Which pairs meet in a batch, and batches that are read from the packed images while the step before them computes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xmodal_kedro.models.backbone import Backbone, Tokens, trimmed

Item = TypeVar("Item")


class Pairs:
    """Training pairs: packed images, captions that are tokenised once, and keys of positives."""

    def __init__(self, backbone: Backbone, pixels: np.ndarray, examples: pd.DataFrame) -> None:
        """Tokenise every distinct caption.

        Args:
            backbone: Whose tokens these will be.
            pixels: [N, S, S, 3] uint8, may be memory-mapped.
            examples: Columns `text`, `image_row` (row of `pixels`), `key` (rows with equal keys are positives).

        Raises:
            ValueError: Fewer than two pairs, a caption that is null, or an image row that does not exist.
        """
        if len(examples) < 2:
            raise ValueError(f"a contrastive loss needs at least 2 pairs, there are {len(examples)}")
        self.image_rows = image_rows_of(examples, len(pixels))
        self.pixels = pixels
        self.keys = torch.from_numpy(examples["key"].to_numpy(np.int64, copy=True))
        texts, distinct = pd.factorize(examples["text"])
        self.texts = torch.from_numpy(texts)
        self.tokens = backbone.tokenize([str(text) for text in distinct])
        columns = [pd.factorize(self.keys.numpy())[0], texts, pd.factorize(self.image_rows)[0]]
        self.alike = min(columns, key=lambda codes: codes.max())  # key, caption or image: whichever repeats most

    def images(self, rows: np.ndarray) -> Tensor:
        """Pixels [B, S, S, 3] uint8."""
        return torch.from_numpy(np.ascontiguousarray(self.pixels[self.image_rows[rows]]))

    def captions(self, rows: np.ndarray) -> tuple[Tokens, Tensor]:
        """Trimmed tokens and keys [B]."""
        picked = torch.from_numpy(rows)
        texts = self.texts[picked]
        return trimmed({name: values[texts] for name, values in self.tokens.items()}), self.keys[picked]


def image_rows_of(examples: pd.DataFrame, images: int) -> np.ndarray:
    """Rows [N] of the examples' images, of which there are so many.

    Raises:
        ValueError: An example has no text, or an image row that does not exist.
    """
    if examples["text"].isna().any():
        raise ValueError(f"pair {int(examples['text'].isna().to_numpy().argmax())} of the examples has no text")
    rows: np.ndarray = examples["image_row"].to_numpy(np.int64)
    outside = (rows < 0) | (rows >= images)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"pair {row} of the examples names image row {rows[row]}, of {images} packed images: the images and the "
            "captions are not of the same run, run data_processing again"
        )
    return rows


def deal(alike: np.ndarray, batch_size: int, generator: np.random.Generator, multiple_of: int = 1) -> list[np.ndarray]:
    """Deal rows to batches like cards, one value of `alike` after the other.

    Rows that are alike end up in different batches; if there are more of them than batches, they are shared out evenly.
    Batches are as even as they can be, so there is no ragged tail; one of a single row has no negatives and is left
    out, and so are the `N % multiple_of` rows that no batch can take.

    Args:
        alike: [N] integers, equal where two rows should not meet. All different means a plain shuffle.
        batch_size: Rows at most.
        generator: Decides the order of the values, of the rows of a value, and of the batches.
        multiple_of: Divides the rows of every batch, so that as many processes share it evenly.

    Returns:
        Arrays of rows, together `arange(N)` (but for those that are left out).
    """
    shares = len(alike) // multiple_of
    batches = math.ceil(shares / (batch_size // multiple_of))
    values, codes = np.unique(alike, return_inverse=True)
    shuffled = generator.permutation(len(alike))
    turn = generator.permutation(len(values))[codes]
    cards = shuffled[np.argsort(turn[shuffled], kind="stable")]
    order = generator.permutation(batches)
    if batches == 0:
        return []
    # Every batch gets a card in each of the first rounds; in the last ones only those that are to be longer by a share.
    rounds, longer = shares // batches * multiple_of, shares % batches
    first, last = cards[: rounds * batches], cards[rounds * batches : shares * multiple_of]
    hands = [[first[hand::batches], last[hand::longer] if hand < longer else last[:0]] for hand in order]
    return [rows for hand in hands if len(rows := np.concatenate(hand)) > 1]


def prefetched(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items of an iterable, the next one being made by a thread meanwhile.

    What the iterable raises is raised here, after the items before it. Closing the generator waits for the thread.
    """
    iterator: Iterator[Item] = iter(items)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ahead = thread.submit(next, iterator, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that a GPU can fetch while it computes; the tensor itself for the CPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
