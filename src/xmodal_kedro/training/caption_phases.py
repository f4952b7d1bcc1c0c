"""The two ways in which captioners are trained: what a batch is, how it is read, and what its losses are.

Every image of a batch is read, transformed and encoded once, however many captions of it are learned (BatchNorm sees it
once, too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from xmodal_kedro.config.captioning import CaptioningConfig, CaptionTrainConfig, SelfCriticalConfig
from xmodal_kedro.models.captioner import Captioner, caption_loss
from xmodal_kedro.training.batches import pinned
from xmodal_kedro.training.caption_batches import Captions, Images, Views, deal_captions
from xmodal_kedro.training.optimiser import learning_rate
from xmodal_kedro.training.self_critical import SelfCritical, deal_images


class Phase(Protocol):
    """What the loop asks of a way to train."""

    name: str
    epochs: int
    captions: int  # that are learned in an epoch

    def deal(self, generator: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch, as rows of whatever is dealt."""

    def read(self, rows: np.ndarray) -> Any:
        """This process's share of a batch; called in a thread."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars whose means over the processes are those of the whole batch; `loss` has a gradient."""

    def rate(self, step: int) -> float:
        """Learning rate of a step of this phase, from 0."""


def teacher_forcing_loss(
    captioner: Captioner, images: Tensor, which: Tensor, ids: Tensor, *, ignore_padding: bool = True
) -> Tensor:
    """Mean cross-entropy of the tokens of captions; equal to encoding a copy of its image for each.

    Args:
        captioner: Whose image encoder sees every image once.
        images: [I, 3, H, W], or vectors [I, W].
        which: [B] row of `images` for each caption.
        ids: [B, L].
        ignore_padding: See `caption_loss`.
    """
    logits = captioner(captioner.encode(images)[which], ids)
    return caption_loss(logits, ids, padding=captioner.vocabulary.pad, ignore_padding=ignore_padding)


@dataclass(frozen=True)
class _Forced:
    """Captions of a batch with their images, pinned."""

    images: Images
    which: Tensor
    ids: Tensor
    weight: float


class TeacherForcing:
    """Every caption once an epoch, each token predicted from those before it."""

    name = "teacher_forcing"

    def __init__(self, captioner: Captioner, captions: Captions, views: Views, config: CaptionTrainConfig) -> None:
        """Train on these captions, whose image rows are rows of what `views` shows."""
        self.captioner, self.of, self.views, self.config = captioner, captions, views, config
        self.epochs, self.captions = config.epochs, len(captions)
        self.steps_per_epoch = len(self.deal(np.random.default_rng(0)))

    def deal(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Rows of captions."""
        return deal_captions(self.of.image_rows, self.config.batch_size, self.config.captions_per_image, generator)

    def read(self, rows: np.ndarray) -> _Forced:
        """See `Phase`."""
        share, device = self.of.share(rows), self.views.device
        images = self.views.read(share.images, self.of.image_rows[rows])
        return _Forced(images, pinned(share.which, device), pinned(share.ids, device), share.weight)

    def losses(self, batch: _Forced) -> dict[str, Tensor]:
        """See `Phase`."""
        images = self.views.show(batch.images)
        which, ids = (part.to(images.device, non_blocking=True) for part in (batch.which, batch.ids))
        ignores = self.config.ignore_padding
        return {"loss": teacher_forcing_loss(self.captioner, images, which, ids, ignore_padding=ignores) * batch.weight}

    def rate(self, step: int) -> float:
        """See `Phase`."""
        return learning_rate(step, self.steps_per_epoch, self.config)


class Rewarding:
    """Every image once an epoch, captions drawn for it and rewarded; see `training.self_critical`."""

    name = "self_critical"

    def __init__(
        self,
        captioner: Captioner,
        captions: Captions,
        texts: Sequence[str],
        views: Views,
        config: SelfCriticalConfig,
        captioning: CaptioningConfig,
    ) -> None:
        """Hold drawn captions to all that is written about their image.

        Args:
            captioner: Trained in place.
            captions: Whose image rows count.
            texts: Of these captions.
            views: Of the images.
            config: See `SelfCriticalConfig`.
            captioning: Its `tokeniser` and the `max_steps` of its decoding count.
        """
        self.views, self.config = views, config
        self.images, places = np.unique(captions.image_rows, return_inverse=True)
        references: list[dict[str, None]] = [{} for _ in self.images]
        for place, text in zip(places.tolist(), texts, strict=True):
            references[place][text] = None
        steps = captioning.decoding.max_steps
        self.critic = SelfCritical(captioner, [list(one) for one in references], captioning.tokeniser, config, steps)
        self.epochs, self.captions = config.epochs, len(self.images) * config.samples

    def deal(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Places of images."""
        return deal_images(len(self.images), self.config.batch_size, generator)

    def read(self, rows: np.ndarray) -> tuple[Images, np.ndarray]:
        """See `Phase`."""
        return self.views.read(self.images[self.critic.own(rows)], self.images[rows]), rows

    def losses(self, batch: tuple[Images, np.ndarray]) -> dict[str, Tensor]:
        """See `Phase`."""
        images, rows = batch
        return self.critic.losses(self.views.show(images), rows, self.views.generator)

    def rate(self, step: int) -> float:
        """See `Phase`."""
        return self.config.lr
