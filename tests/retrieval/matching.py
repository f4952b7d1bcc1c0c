"""A backbone with a matching head that is small enough to be obvious, and counts what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kedro.models.backbone import Backbone, Tokens, Tower

SIZE, WIDTH, LETTERS = 8, 12, 128


class Matching(Backbone):
    """Letters are tokens, 16 patches are states; random weights of a seed. Not registered."""

    name = "matching"
    library_weights = "model.safetensors"
    library_files = ()
    matches = True

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.ModuleDict(
                {
                    "patches": nn.Conv2d(3, WIDTH, 2, 2),
                    "letters": nn.Embedding(LETTERS, WIDTH),
                    "look": nn.Linear(WIDTH, WIDTH),
                    "judge": nn.Linear(WIDTH, WIDTH),
                    "dropout": nn.Dropout(0.5),
                }
            )
        super().__init__(model, WIDTH, SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.images_seen: list[int] = []  # per call
        self.memories_seen: list[int] = []  # per call: images
        self.pairs_seen: list[tuple[int, int]] = []  # per call: pairs, tokens of each

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model["patches"](pixels).flatten(2).mean(2)

    def encode_text(self, tokens: Tokens) -> Tensor:
        return (self.model["letters"](tokens["input_ids"]) * tokens["attention_mask"][:, :, None]).sum(1)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        ids = [torch.tensor([1, *(ord(letter) % LETTERS for letter in text)]) for text in texts]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True) if ids else torch.zeros(0, 0, dtype=torch.long)
        lengths = torch.tensor([len(one) for one in ids], dtype=torch.long)
        return {"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}

    def image_states(self, pixels: Tensor) -> Tensor:
        self.images_seen.append(len(pixels))
        return self.model["dropout"](self.model["patches"](pixels).flatten(2).transpose(1, 2))

    def image_memory(self, image_states: Tensor) -> tuple[Tensor, ...]:
        self.memories_seen.append(len(image_states))
        return super().image_memory(image_states)

    def match(self, image_states: Tensor, tokens: Tokens) -> Tensor:
        self.pairs_seen.append(tuple(tokens["input_ids"].shape))
        letters = self.model["letters"](tokens["input_ids"])  # [B, L, C]
        looked = F.softmax(self.model["look"](letters) @ image_states.transpose(1, 2), dim=2) @ image_states
        return ((looked * self.model["judge"](letters)).sum(2) * tokens["attention_mask"]).sum(1)

    def layer_groups(self, tower: Tower) -> list[list[nn.Parameter]]:
        return [list(self.parameters())]

    @classmethod
    def from_config(cls, architecture: Mapping[str, object], seed: int, texts: Sequence[str] = ()) -> Self:
        return cls(seed)

    @classmethod
    def from_library(cls, directory: Path, *, weights: bool) -> Self:
        raise NotImplementedError

    def save_settings(self, directory: Path) -> None:
        raise NotImplementedError
