"""How a captioner is judged while it trains: greedy captions of images of dev, against all that people wrote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.captioning.decode import decode_batches
from xmodal_kedro.captioning.diversity import distinct_captions, repetition
from xmodal_kedro.captioning.metrics import TOKENISERS, evaluate
from xmodal_kedro.captioning.references import references_of
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.data.image_store import ImageStore

COLLAPSED = 0.02  # distinct captions per image


@dataclass(frozen=True)
class DevCaptions:
    """Judges a captioner by greedy captions of images of dev, against all that people wrote about them."""

    references: dict[str, list[str]]  # of the images, in the order of `rows`
    images: ImageStore
    rows: np.ndarray  # [N] of the images in the store
    captioning: CaptioningConfig
    metrics: tuple[str, ...]  # with their tokeniser
    device: torch.device

    @classmethod
    def of(
        cls, captions: pd.DataFrame, images: ImageStore, metric: str, captioning: CaptioningConfig, device: torch.device
    ) -> DevCaptions | None:
        """Take images evenly from those of dev that have references; none if fewer than two do, too few for CIDEr-D."""
        found, cut = references_of(captions, "dev"), TOKENISERS[captioning.tokeniser]
        # Without what a metric can compare, such as a full stop alone, an image cannot be judged.
        known = [image_id for image_id in found if image_id in images.ids and any(map(cut, found[image_id]))]
        if len(known) < 2:
            return None
        places = np.linspace(0, len(known) - 1, min(len(known), captioning.dev_images)).round().astype(int)
        taken = [known[place] for place in places]
        named = tuple(dict.fromkeys(captioning.named(one) for one in ("cider_d", metric)))
        return cls({one: found[one] for one in taken}, images, images.rows(taken), captioning, named, device)

    def __call__(self, captioner: PackedCaptioner) -> dict[str, float]:
        """Metrics by name, and how much captions differ and repeat themselves."""
        decoding = DecodingConfig(method="greedy", max_steps=self.captioning.decoding.max_steps)
        size = self.captioning.batch_size
        batches = (
            torch.from_numpy(self.images.pixels[self.rows[start : start + size]]).to(self.device)
            for start in range(0, len(self.rows), size)
        )
        texts = [caption.text for caption in decode_batches(captioner, batches, decoding)]
        captions = dict(zip(self.references, texts, strict=True))
        scores = evaluate(captions, self.references, self.metrics)
        cut = TOKENISERS[self.captioning.tokeniser]
        return {
            **{name: score.value for name, score in scores.items()},
            "distinct_captions": distinct_captions(texts),
            self.captioning.named("repetition"): repetition([cut(text) for text in texts]),
        }

    def collapsed(self, distinct: float) -> bool:
        """Whether so few captions differ (a share) that the captioner hardly looks at its images."""
        return distinct <= max(COLLAPSED, 1 / len(self.references))
