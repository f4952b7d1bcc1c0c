"""CLIPScore and RefCLIPScore of captions by the embeddings of a trained member."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from xmodal_kedro.captioning.metrics import Scores, clip_score, ref_clip_score
from xmodal_kedro.captioning.metrics.evaluate import References
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.models.checkpoint import Checkpoint
from xmodal_kedro.retrieval.embed import embed_images, embed_texts

AT_ONCE = 2048  # images whose texts are in memory together
KEPT = 1 << 28  # bytes of embeddings, of images and of references each, that are kept for the next captioner


class ClipScores:
    """Scores captions by how close a member puts them to their image and references.

    Texts are embedded as they are: the published "A photo depicts " belongs to CLIP, and to English. Numbers by
    different members do not compare.
    """

    def __init__(self, checkpoint: Checkpoint, images: ImageStore, device: torch.device | str) -> None:
        """Score by a member.

        Args:
            checkpoint: The member; its `embed` says how to encode.
            images: Where the pixels lie.
            device: Where to encode.
        """
        self._checkpoint, self._store, self._device = checkpoint, images, device
        self._images: dict[str, np.ndarray] = {}  # image id to its embedding
        self._references: dict[str, np.ndarray] = {}  # sentence to its embedding

    def __call__(self, captions: Mapping[str, str], references: References) -> dict[str, Scores]:
        """`clipscore` and `ref_clipscore`.

        Args:
            captions: Image id to its caption, of one image at least.
            references: The same image ids to their sentences.

        Returns:
            Name to scores, in the order of `captions`.

        Raises:
            KeyError: An image is not packed (it is named).
            ValueError: An image has no reference.
        """
        ids, by_image, by_both = list(captions), [], []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            sentences = [sentence for image_id in some for sentence in references[image_id]]
            owners = np.repeat(np.arange(len(some)), [len(references[image_id]) for image_id in some])
            images = _remembered(self._images, some, self._embed_images)
            texts = self._embed_texts([captions[image_id] for image_id in some])
            told = _remembered(self._references, sentences, self._embed_texts)
            by_image.append(clip_score(images, texts).each)
            by_both.append(ref_clip_score(images, texts, told, owners).each)
        return {
            "clipscore": Scores.mean_of(np.concatenate(by_image)),
            "ref_clipscore": Scores.mean_of(np.concatenate(by_both)),
        }

    def _embed_images(self, image_ids: Sequence[str]) -> np.ndarray:
        embed = self._checkpoint.member.embed
        rows, backbone = self._store.rows(image_ids), self._checkpoint.backbone
        return embed_images(backbone, self._store.pixels, rows, embed.batch_size, self._device, embed.precision)

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        embed = self._checkpoint.member.embed
        return embed_texts(self._checkpoint.backbone, texts, embed.batch_size, self._device, embed.precision)


def _remembered(
    known: dict[str, np.ndarray], keys: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """The embeddings [keys, D] of images or texts; those that are not known are made, and kept while there is room."""
    new = [key for key in dict.fromkeys(keys) if key not in known]
    made = dict(zip(new, embed(new), strict=True)) if new else {}
    found = np.stack([known[key] if key in known else made[key] for key in keys])
    room = KEPT // found[0].nbytes - len(known)
    known.update((key, made[key].copy()) for key in new[: max(0, room)])
    return found
