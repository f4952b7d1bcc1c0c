"""Images and texts to L2-normalised fp32 rows, in the order they were given, whatever batches they travelled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from xmodal_kedro.models.backbone import Backbone, trimmed
from xmodal_kedro.training.batches import pinned, prefetched

Precision = Literal["fp32", "bf16"]


def embed_images(
    backbone: Backbone,
    pixels: np.ndarray,
    rows: np.ndarray | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: bool = False,
) -> np.ndarray:
    """Encode packed images.

    Args:
        backbone: Moved to `device`.
        pixels: [N, S, S, 3] uint8, may be memory-mapped.
        rows: Which rows of `pixels`, in which order; none means all.
        batch_size: Images at a time.
        device: Where to encode.
        precision: bf16 runs the model under autocast; the result is fp32 either way.
        progress: Show a bar on a terminal.

    Returns:
        [rows, D] fp32, each row of length 1.

    Raises:
        ValueError: The images are smaller than the model's input.
    """
    device = torch.device(device)
    rows = np.arange(len(pixels)) if rows is None else np.asarray(rows, np.int64)
    transform = backbone.image_transform(train=False)

    def read(batch: np.ndarray) -> Tensor:
        return pinned(torch.from_numpy(np.ascontiguousarray(pixels[rows[batch]])), device)

    def encode(raw: Tensor) -> Tensor:
        return backbone.encode_image(transform(raw.to(device, non_blocking=True)))

    with inference(backbone, device, precision):
        return _embed(np.arange(len(rows)), read, encode, backbone.embed_dim, batch_size, progress, "images")


def embed_texts(
    backbone: Backbone,
    texts: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: bool = False,
) -> np.ndarray:
    """Encode texts, equal ones once, those of similar length together so that little padding is computed.

    Args:
        backbone: Moved to `device`.
        texts: Any number of them.
        batch_size: Texts at a time.
        device: Where to encode.
        precision: bf16 runs the model under autocast; the result is fp32 either way.
        progress: Show a bar on a terminal.

    Returns:
        [texts, D] fp32, each row of length 1.
    """
    device = torch.device(device)
    codes, distinct = pd.factorize(np.array(texts, dtype=object))
    tokens = backbone.tokenize([str(text) for text in distinct])
    by_length = tokens["attention_mask"].sum(1).argsort(descending=True, stable=True).numpy()

    def read(batch: np.ndarray) -> dict[str, Tensor]:
        return {name: pinned(values[batch], device) for name, values in tokens.items()}

    def encode(raw: dict[str, Tensor]) -> Tensor:
        return backbone.encode_text({k: v.to(device, non_blocking=True) for k, v in trimmed(raw).items()})

    with inference(backbone, device, precision):
        return _embed(by_length, read, encode, backbone.embed_dim, batch_size, progress, "texts")[codes]


def _embed(
    order: np.ndarray,  # [N], the items in the order in which they are encoded
    read: Callable[[np.ndarray], object],
    encode: Callable[..., Tensor],
    width: int,
    batch_size: int,
    progress: bool,
    what: str,
) -> np.ndarray:
    embeddings = np.empty((len(order), width), np.float32)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    bar = tqdm(total=len(order), desc=f"embed {what}", unit="item", disable=None if progress else True)
    with bar, closing(prefetched((batch, read(batch)) for batch in batches)) as ready:
        for batch, raw in ready:
            embeddings[batch] = F.normalize(encode(raw).float(), dim=-1).cpu().numpy()
            bar.update(len(batch))
    return embeddings


@contextmanager
def inference(backbone: Backbone, device: torch.device, precision: Precision) -> Iterator[None]:
    """Run with the backbone on the device in eval mode, without gradients; its mode comes back at the end."""
    training = backbone.training
    backbone.to(device).eval()
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    try:
        with torch.inference_mode(), bf16:
            yield
    finally:
        backbone.train(training)
