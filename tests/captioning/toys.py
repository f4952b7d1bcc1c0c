"""Captioners that are small enough to be known by heart: tables of logits, and a GRU with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.reference.decoding import Next

START, END = 0, 1
Logits = Callable[[int, tuple[int, ...]], Sequence[float]]  # image, ids so far -> logits


@dataclass(frozen=True)
class Letters:
    """Letters, after a start and an end."""

    tokens: tuple[str, ...] = ("[CLS]", "[SEP]", "a", "b", "c", "d")
    start: int = START
    end: int = END
    pad: int = END

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[index] for index in ids if index > END)


class TableCaptioner:
    """Looks logits up by the number of the image and all ids so far; its state is a list of both."""

    def __init__(self, logits: Logits, vocabulary: Letters | None = None) -> None:
        self.logits = logits
        self.vocabulary = vocabulary or Letters()
        self.sizes: list[int] = []  # rows of every step

    def begin(self, images: Tensor, steps: int) -> list[tuple[int, tuple[int, ...]]]:
        return [(image, ()) for image in images.tolist()]

    def step(
        self, ids: Tensor, state: list[tuple[int, tuple[int, ...]]]
    ) -> tuple[Tensor, list[tuple[int, tuple[int, ...]]]]:
        self.sizes.append(len(ids))
        state = [(image, (*before, token)) for (image, before), token in zip(state, ids.tolist(), strict=True)]
        assert all(before[0] == START for _, before in state)
        return torch.tensor([list(self.logits(image, before[1:])) for image, before in state]), state

    def select(self, state: list[tuple[int, tuple[int, ...]]], rows: Tensor) -> list[tuple[int, tuple[int, ...]]]:
        return [state[row] for row in rows.tolist()]

    def following(self, image: int) -> Next:
        """What the reference asks."""

        def log_probabilities(ids: tuple[int, ...]) -> list[float]:
            logits = torch.tensor([list(self.logits(image, ids))])
            ruled_out = bool((logits == -torch.inf).all())
            return (logits if ruled_out else logits.log_softmax(1))[0].tolist()

        return log_probabilities


def random_table(seed: int, choices: Sequence[float], tokens: int = 6, ending: float = 0.0) -> Logits:
    """Logits out of a few values, so that many of them are equal; the end gets `ending` more for every id so far."""

    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        draw = random.Random(f"{seed} {image} {ids}")
        values = [draw.choice(choices) for _ in range(tokens)]
        values[START] = -torch.inf
        values[END] += ending * len(ids)
        return values

    return logits


class GRUCaptioner(nn.Module):
    """One GRU cell; images are vectors [B, 4]."""

    def __init__(self, seed: int, sharpness: float = 1.5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.look, self.embed = nn.Linear(4, 8), nn.Embedding(6, 8)
            self.cell, self.head = nn.GRUCell(8, 8), nn.Linear(8, 6)
            for parameter in self.parameters():
                nn.init.normal_(parameter)
        self.sharpness = sharpness
        self.vocabulary = Letters()
        self.eval()

    def begin(self, images: Tensor, steps: int) -> Tensor:
        return self.look(images)

    def step(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(self.embed(ids), state)
        return self.head(state) * self.sharpness, state

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]

    def following(self, image: Tensor) -> Next:
        """What the reference asks: everything from the start, alone, each time."""

        @torch.no_grad()
        def logits(ids: tuple[int, ...]) -> list[float]:
            hidden = self.look(image[None])
            for token in (START, *ids):
                hidden = self.cell(self.embed(torch.tensor([token])), hidden)
            return (self.head(hidden) * self.sharpness).log_softmax(1)[0].tolist()

        return logits
