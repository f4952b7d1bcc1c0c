"""What decoding asks of a captioner: begin with images, give logits token by token, and pick rows of its state.

Every captioner that does this can be decoded by every method and mixed into an ensemble with others of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


class Vocabulary(Protocol):
    """The tokens of a captioner; two captioners can be mixed if theirs are equal."""

    @property
    def start(self) -> int:
        """Id of the token that every caption is begun with."""

    @property
    def end(self) -> int:
        """Id of the token that ends a caption."""

    @property
    def pad(self) -> int:
        """Id of the token that fills up rows in training."""

    @property
    def tokens(self) -> Sequence[str]:
        """All tokens in the order of their ids."""

    def text(self, ids: Sequence[int]) -> str:
        """What a person reads, without special tokens."""


class Captioner(Protocol[State]):
    """A model that is asked for one token after the other.

    A state belongs to a batch of captions under way, one row each: the image, and all tokens so far (or the keys and
    values that a model keeps of them). A state that was handed to `step` or `select` may be used up and is not used
    again. A model is in eval mode.
    """

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the ids that go in and of the columns of the logits."""

    def begin(self, images: Tensor, steps: int) -> State:
        """Images [B, ...], pixels or features, as this captioner wants them, to a state of B rows without tokens.

        At most so many steps follow.
        """

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Append ids [B]; logits [B, V] of what follows, and the new state. The first ids are `vocabulary.start`."""

    def select(self, state: State, rows: Tensor) -> State:
        """State whose row i is row `rows[i]` of another one; rows [R] may repeat, be left out and change places."""


@dataclass(frozen=True)
class Caption:
    """One decoded caption."""

    ids: tuple[int, ...]  # without the start and the end
    text: str
    log_probability: float  # natural logarithm, of all ids and, where it was reached, of the end
    ended: bool  # False where it was cut after the last step that was allowed


@dataclass
class Draft:
    """A caption under way."""

    row: int  # of the image in its batch
    ids: tuple[int, ...] = ()
    log_probability: float = 0.0
    over: bool = False
    ended: bool = False

    def finished(self, vocabulary: Vocabulary) -> Caption:
        """The caption that it has become."""
        return Caption(self.ids, vocabulary.text(self.ids), self.log_probability, self.ended)


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits [B, V] to natural logarithms of probabilities [B, V], in fp32.

    A row in which every token is ruled out (-inf) stays so: no token follows there.
    """
    logits = logits.float()
    dead = (logits == -torch.inf).all(1, keepdim=True)
    return logits.log_softmax(1).masked_fill(dead, -torch.inf)


def refuse_nan(value: float, step: int) -> None:
    """Stop where a model computes nonsense.

    Raises:
        FloatingPointError: The value is NaN.
    """
    if value != value:
        raise FloatingPointError(
            f"the captioner's logits of token {step} are NaN or infinite. Were its weights saved after a diverged "
            "training? Take an earlier checkpoint, or compute in fp32"
        )
