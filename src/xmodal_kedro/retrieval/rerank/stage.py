"""The registry of second stages: each is asked about the first candidates of queries and answers with new scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from xmodal_kedro.config.ensemble import RerankConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.models.checkpoint import Checkpoint
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.slices import Slice

Direction = Literal["t2i", "i2t"]


class Candidates(NamedTuple):
    """The best of the first stage for every query of one direction.

    Attributes:
        rows: [N, K] int64, places in the gallery of the slice, best first.
        first: [N, K] fp64, their exact scores in the first stage.
    """

    rows: np.ndarray
    first: np.ndarray


@dataclass(frozen=True, eq=False)
class Asked:
    """What a second stage is asked about.

    Attributes:
        part: Slice whose texts (`t2i`) or images (`i2t`) are the queries.
        candidates: Of each direction that is re-ranked.
        member: Embeddings of the member that decides.
        config: Of the re-ranking.
        device: Where to compute.
        checkpoint: What made the embeddings; none where the method asks for no checkpoint.
        images: Where the pixels lie; none where the method looks at no pixels.
    """

    part: Slice
    candidates: Mapping[Direction, Candidates]
    member: Member
    config: RerankConfig
    device: torch.device | str = "cpu"
    checkpoint: Checkpoint | None = None
    images: ImageStore | None = None

    def vectors(self, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """The member's vectors of the queries [N, D] and of the gallery [M, D] of a direction."""
        texts, images = self.member.texts.take(self.part.text_ids), self.member.images.take(self.part.image_ids)
        return (texts, images) if direction == "t2i" else (images, texts)


class Answer(NamedTuple):
    """What a second stage says about the candidates of one direction, both [N, K].

    Attributes:
        second: What it says by itself, such as a logit, fp32.
        score: What decides, fp64.
    """

    second: np.ndarray
    score: np.ndarray


Ask = Callable[[Asked], dict[Direction, Answer]]


class SecondStage(NamedTuple):
    """A second stage and what it asks for.

    Attributes:
        ask: Answers for every direction that it is asked about.
        head: Whether the member needs an image-text matching head.
        directions: Those that it can re-rank.
    """

    ask: Ask
    head: bool
    directions: tuple[Direction, ...]


SECOND_STAGES: dict[str, SecondStage] = {}


def second_stage(
    name: str, *, head: bool = False, directions: tuple[Direction, ...] = ("t2i",)
) -> Callable[[Ask], Ask]:
    """Register a second stage under the name that `ensemble.rerank.method` uses.

    Whether it needs checkpoint and pixels is said by `RerankConfig.looks`, which pipelines read without torch.

    Raises:
        ValueError: The name is taken.
    """

    def register(ask: Ask) -> Ask:
        if name in SECOND_STAGES:
            raise ValueError(f"the second stage '{name}' is registered twice.")
        SECOND_STAGES[name] = SecondStage(ask, head, directions)
        return ask

    return register
