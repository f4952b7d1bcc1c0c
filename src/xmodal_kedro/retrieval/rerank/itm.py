"""Logits of an image-text matching head for chosen pairs: each image encoded once, each pair matched once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.models.backbone import Backbone, trimmed
from xmodal_kedro.retrieval.embed import Precision, inference
from xmodal_kedro.retrieval.rerank.stage import Answer, Asked, Direction, second_stage
from xmodal_kedro.training.batches import pinned, prefetched


@second_stage("itm", head=True)
def ask_itm(asked: Asked) -> dict[Direction, Answer]:
    """Logits of the checkpoint's matching head, and what the formula makes of them; equal texts are matched once."""
    assert asked.checkpoint is not None, "config.looks"
    assert asked.images is not None, "config.looks"
    config, part, candidates = asked.config, asked.part, asked.candidates["t2i"]
    captions, texts = pd.factorize(np.asarray(part.texts, dtype=object))
    logits = match_logits(
        asked.checkpoint.backbone,
        asked.images.pixels,
        asked.images.rows(part.image_ids)[candidates.rows.ravel()],
        [str(text) for text in texts],
        np.repeat(captions, candidates.rows.shape[1]),
        config.batch_size,
        asked.device,
        config.precision,
    ).reshape(candidates.rows.shape)
    return {"t2i": Answer(logits, combined(candidates.first, logits, config.formula))}


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

    The pairs are worked off image by image, `batch_size` images at a time: memory holds the states of these, however
    large the gallery is. Their pairs are matched longest text first, so that little padding is computed.

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
    lengths = tokens["attention_mask"].sum(1).numpy()
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
            by_length = part.start + np.argsort(-lengths[caption[part]], kind="stable")
            for at in range(0, len(by_length), batch_size):
                chosen = by_length[at : at + batch_size]
                batch = trimmed({name: values[caption[chosen]] for name, values in tokens.items()})
                found = backbone.match(
                    states[torch.from_numpy(image[chosen] - start).to(device)],
                    {name: values.to(device) for name, values in batch.items()},
                )
                logits[chosen] = found.float().cpu().numpy()
                bar.update(len(chosen))
    if not np.isfinite(logits).all():
        wrong = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise ValueError(
            f"the matching head gives {logits[wrong]} for image row {distinct[image[wrong]]} and the text "
            f"'{texts[caption[wrong]]}': its weights are not finite, or precision is too low."
        )
    return logits[same]


def combined(fused: np.ndarray, itm: np.ndarray, formula: str) -> np.ndarray:
    """New scores of the candidates of texts.

    Args:
        fused: [N, K] scores of the first stage.
        itm: [N, K] logits.
        formula: `fused_plus_unit_itm` adds the logits divided by the Euclidean length of the text's K logits, as the
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
