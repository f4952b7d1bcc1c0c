"""Logits of an image-text matching head for chosen pairs: each image looked at once, each pair matched once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.models.backbone import Backbone, Tokens, trimmed
from xmodal_kedro.retrieval.embed import Precision, inference
from xmodal_kedro.retrieval.rerank.stage import Answer, Asked, Direction, second_stage
from xmodal_kedro.training.batches import pinned, prefetched

MEMORY = 512 * 2**20  # bytes of what texts look at in images, at once


@second_stage("itm", head=True, directions=("t2i", "i2t"))
def ask_itm(asked: Asked) -> dict[Direction, Answer]:
    """Logits of the checkpoint's matching head, and what the formula makes of them; equal texts are matched once.

    A pair that is a candidate in both directions is matched once, too.
    """
    assert asked.checkpoint is not None, "config.looks"
    assert asked.images is not None, "config.looks"
    config, part = asked.config, asked.part
    captions, texts = pd.factorize(np.asarray(part.texts, dtype=object))
    pairs = {direction: _text_and_image(direction, found.rows) for direction, found in asked.candidates.items()}
    text, image = (np.concatenate(side) for side in zip(*pairs.values(), strict=True))
    logits = match_logits(
        asked.checkpoint.backbone,
        asked.images.pixels,
        asked.images.rows(part.image_ids)[image],
        [str(one) for one in texts],
        captions[text],
        config.batch_size,
        asked.device,
        config.precision,
    )
    answers: dict[Direction, Answer] = {}
    for direction, found in asked.candidates.items():
        second, logits = logits[: found.rows.size].reshape(found.rows.shape), logits[found.rows.size :]
        answers[direction] = Answer(second, combined(found.first, second, config.formula))
    return answers


def _text_and_image(direction: Direction, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of text and image [N * K] in the slice of every query and its candidates [N, K]."""
    queries, gallery = np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()
    return (queries, gallery) if direction == "t2i" else (gallery, queries)


def match_logits(
    backbone: Backbone,
    pixels: np.ndarray,
    images: np.ndarray,
    texts: Sequence[str],
    captions: np.ndarray,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> np.ndarray:
    """Match pairs of an image and a text.

    The pairs are worked off image by image: at any time there are the states of `batch_size` images and, of as many of
    these as fit into `MEMORY` (one at least), what texts look at in them, however large the gallery is.

    Args:
        backbone: One that `matches`; moved to `device`.
        pixels: [N, S, S, 3] uint8, may be memory-mapped.
        images: [P] int64 row of `pixels` of each pair.
        texts: Distinct texts.
        captions: [P] int64 place in `texts` of each pair. Pairs may repeat; each is matched once.
        batch_size: Images, and pairs, at once.
        device: Where to compute.
        precision: bf16 runs the model under autocast; the result is fp32 either way.

    Returns:
        [P] fp32, higher where the text is more likely to be right for the image.

    Raises:
        ValueError: The backbone has no matching head, or gives a logit that is not finite.
    """
    if not backbone.matches:
        raise ValueError(f"the backbone '{backbone.name}' has no image-text matching head.")
    device = torch.device(device)
    distinct, image_of = np.unique(images, return_inverse=True)
    pairs, same = np.unique(image_of * max(1, len(texts)) + captions, return_inverse=True)  # image by image
    if len(pairs) == 0:
        return np.empty(0, np.float32)
    image, caption = np.divmod(pairs, len(texts))
    tokens = backbone.tokenize(list(texts))
    transform = backbone.image_transform(train=False)
    logits = np.empty(len(pairs), np.float32)

    def chunks() -> Iterator[tuple[int, slice, Tensor]]:
        """First image of a chunk, its pairs, and its pixels."""
        for start in range(0, len(distinct), batch_size):
            first, last = np.searchsorted(image, [start, start + batch_size])
            chosen = np.ascontiguousarray(pixels[distinct[start : start + batch_size]])
            yield start, slice(first, last), pinned(torch.from_numpy(chosen), device)

    bar = tqdm(total=len(pairs), desc="re-rank", unit="pair", delay=3, leave=False, disable=None)
    with inference(backbone, device, precision), bar, closing(prefetched(chunks())) as ready:
        for start, part, raw in ready:
            states = backbone.image_states(transform(raw.to(device, non_blocking=True)))  # [B, T, C]
            for places, found in match_states(backbone, states, image[part] - start, tokens, caption[part], batch_size):
                logits[part.start + places] = found
                bar.update(len(places))
    if not np.isfinite(logits).all():
        wrong = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise ValueError(
            f"the matching head gives {logits[wrong]} for image row {distinct[image[wrong]]} and the text "
            f"'{texts[caption[wrong]]}': its weights are not finite, or precision is too low."
        )
    return logits[same]


def match_states(
    backbone: Backbone, states: Tensor, images: np.ndarray, tokens: Tokens, captions: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Match pairs of images whose states are there with texts: all texts of an image after each other, longest first.

    Args:
        backbone: One that `matches`, ready for inference.
        states: [B, T, C] of the images, on the device of the backbone.
        images: [P] int64 place in `states` of each pair.
        tokens: [N, L] of the texts, anywhere.
        captions: [P] int64 row of `tokens` of each pair.
        batch_size: Pairs at once.

    Yields:
        Places [<= batch_size] of pairs, each pair once, and their logits, fp32.
    """
    order = np.lexsort((-tokens["attention_mask"].sum(1).numpy()[captions], images))
    start, fitting = 0, 1  # the first image tells how many fit
    while start < len(states):
        memory = backbone.image_memory(states[start : start + fitting])
        count = len(memory[0])
        first, last = np.searchsorted(images, [start, start + count], sorter=order)
        for at in range(first, last, batch_size):
            places = order[at : min(at + batch_size, last)]
            batch = trimmed({name: values[captions[places]] for name, values in tokens.items()})
            found = backbone.match_memory(
                memory,
                torch.from_numpy(images[places] - start).to(states.device),
                {name: values.to(states.device) for name, values in batch.items()},
            )
            yield places, found.float().cpu().numpy()
        start += count
        fitting = max(1, MEMORY * count // sum(part.nbytes for part in memory))
        del memory  # before the next one is there


def combined(fused: np.ndarray, itm: np.ndarray, formula: str) -> np.ndarray:
    """New scores of the candidates of queries.

    Args:
        fused: [N, K] scores of the first stage.
        itm: [N, K] logits.
        formula: `fused_plus_unit_itm` adds the logits divided by the Euclidean length of the query's K logits, as the
            first place of CVPR 2023 track 2 meant to; `itm_plus_fused` adds them as they are, as BLIP (arXiv
            2201.12086) does; `itm` takes them alone.

    Returns:
        [N, K] fp64.
    """
    fused, itm = fused.astype(np.float64), itm.astype(np.float64)
    if formula == "itm":
        return itm
    if formula == "itm_plus_fused":
        return itm + fused
    length = np.linalg.norm(itm, axis=1, keepdims=True)
    return fused + np.divide(itm, length, out=np.zeros_like(itm), where=length > 0)
