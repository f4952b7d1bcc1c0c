"""Captions of all images of some splits by one captioner, as a table; the next batch is read while one is decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from xmodal_kedro.captioning.captioner import Captioner
from xmodal_kedro.captioning.decode import decode_batches
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.training.batches import pinned, prefetched

log = logging.getLogger(__name__)

COLUMNS = {
    **{"split": "str", "image_id": "str", "caption": "str"},
    **{"log_probability": "float64", "ended": "bool", "tokens": "int64"},
}
CUT, SAME = 0.01, 0.5  # shares of captions above which something is wrong


def generate(
    captioner: Captioner[Any],
    captions: pd.DataFrame,
    images: ImageStore,
    splits: Sequence[str],
    captioning: CaptioningConfig,
    device: torch.device | str,
    name: str,
) -> pd.DataFrame:
    """Caption every image of some splits once, whatever is written about it.

    Args:
        captioner: In eval mode, on the device; takes packed pixels [B, S, S, 3] uint8.
        captions: The caption table; `image_id` and `split` are read.
        images: Where the pixels lie; images that are not there are counted in the log.
        splits: Whose images, split by split.
        captioning: `decoding` and `batch_size`; the latter changes no caption.
        device: Where to decode.
        name: What the captioner is called in the log.

    Returns:
        Columns `split, image_id, caption, log_probability, ended, tokens`, a row per image of a split in the order of
        the splits and of the table; `tokens` counts those of the caption, without start and end.

    Raises:
        FloatingPointError: The captioner gives NaN.
    """
    device = torch.device(device)
    wanted = captions.loc[captions["split"].isin(list(splits)), ["split", "image_id"]].dropna().drop_duplicates()
    wanted = wanted.sort_values("split", key=lambda found: found.map(list(splits).index), kind="stable")
    there = wanted["image_id"].isin(images.ids).to_numpy()
    if not there.all():
        log.warning("%s: %d images are not among the packed ones, and get no caption", name, int((~there).sum()))
    wanted = wanted[there].reset_index(drop=True)
    rows = images.rows(wanted["image_id"].tolist())

    def read() -> Iterator[Tensor]:
        for start in range(0, len(rows), captioning.batch_size):
            batch = images.pixels[rows[start : start + captioning.batch_size]]
            yield pinned(torch.from_numpy(np.ascontiguousarray(batch)), device)

    bar = tqdm(total=len(rows), desc=f"{name}: captions", unit="image", disable=None)
    found = []
    with bar, closing(prefetched(read())) as ready:
        batches = (pixels.to(device, non_blocking=True) for pixels in ready)
        for caption in decode_batches(captioner, batches, captioning.decoding):
            found.append((caption.text, caption.log_probability, caption.ended, len(caption.ids)))
            bar.update()
    made = pd.DataFrame(found, columns=["caption", "log_probability", "ended", "tokens"])
    table = pd.concat([wanted, made], axis=1).astype(COLUMNS)
    _report(table, captioning.decoding.max_steps, name)
    return table


def _report(table: pd.DataFrame, max_steps: int, name: str) -> None:
    """Say how many captions there are, and what is wrong with too many of them."""
    if table.empty:
        log.info("%s: no images to caption", name)
        return
    counts = table["split"].value_counts(sort=False)
    of_splits = ", ".join(f"{count} of {split}" for split, count in counts.items())
    log.info(
        "%s: captioned %d images (%s), %.1f tokens on average", name, len(table), of_splits, table["tokens"].mean()
    )
    cut = 1.0 - float(table["ended"].mean())
    if cut > CUT:
        log.warning(
            "%s: %.1f %% of the captions had not ended after captioning.decoding.max_steps = %d tokens and were cut. "
            "Raise it if sentences are that long; a captioner that repeats itself needs more training",
            *(name, 100 * cut, max_steps),
        )
    same = table["caption"].value_counts(normalize=True)
    if len(table) > 1 and same.iloc[0] > SAME:
        log.warning(
            "%s: %.1f %% of the images get the same caption, '%s': it hardly looks at them. Train longer or at a lower "
            "rate, or begin with a member that ranks well",
            *(name, 100 * same.iloc[0], _short(same.index[0])),
        )


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
