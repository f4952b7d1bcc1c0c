"""What products of rounded numbers get wrong, and bounds on it: for tiles in bf16, and tiles in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from xmodal_kedro.retrieval.scores.source import FP32_ROUNDING

BF16_ROUNDING = 2.0**-8  # relative error of rounding to bf16, which has 8 significant bits
INPUT_ROUNDING = {  # relative error of a product whose two fp32 factors torch is allowed to round
    "tf32": 2.0**-10 + 2.0**-22,
    "bf16": 2.0**-7 + 2.0**-16,
}
TINY = 2.0**-126  # the smallest normal number of fp32 and bf16: below it, processors may count with zero
HUGE = 2.0**120  # products of this size could leave the range of fp32 and bf16


def input_rounding(device: torch.device) -> float:
    """Relative error of products of fp32 by what torch is allowed to do to their factors (TF32, bf16)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return INPUT_ROUNDING.get(backend.matmul.fp32_precision, 0.0)


def fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are faster there than of fp32: on GPUs, and CPUs with instructions for them."""
    if device.type == "cpu":
        # without avx512_bf16 or AMX, oneDNN's products of bf16 are slower than those of fp32
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(has and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def sums_in_fp32(device: torch.device) -> Iterator[None]:
    """Forbid CUDA to add up parts of a product in bf16, which it may by default."""
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or not matmul.allow_bf16_reduced_precision_reduction:
        yield
        return
    before = True, matmul.allow_bf16_reduced_precision_reduction_split_k
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def length_bound(vectors: Tensor) -> Tensor:
    """Lengths [N], rounded up: roundings and underflow of their own sums are added."""
    d = vectors.shape[1]
    exact = torch.linalg.vector_norm(vectors, dim=1)
    return exact * (1.0 + (d + 8) * FP32_ROUNDING) + (d * TINY) ** 0.5 * 2


def longest(lengths: Tensor) -> Tensor:
    """The largest of lengths [N]; 0 for none."""
    return lengths.max() if len(lengths) else lengths.new_zeros(())


def largest(scores: Tensor) -> Tensor:
    """The largest absolute value of scores."""
    if scores.numel() == 0:
        return scores.new_zeros(())
    low, high = torch.aminmax(scores)
    return torch.maximum(-low, high)
