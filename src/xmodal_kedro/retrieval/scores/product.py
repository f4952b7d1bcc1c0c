"""Products of fp32 by the fastest library that torch brings along."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [B, D] times right [G, D] transposed, [B, G] fp32.

    On CPUs with AVX512, oneDNN multiplies no slower than MKL, which torch takes by itself, and on those of AMD twice as
    fast. Both add fp32 up in an order of their own, so the bounds on their errors are the same.
    """
    if left.device.type == "cpu" and left.dtype == torch.float32 and left.numel() and right.numel() and _one_dnn():
        return torch.ops.mkldnn._linear_pointwise(left.contiguous(), right.contiguous(), None, "none", [], "")
    return left @ right.T


@cache
def _one_dnn() -> bool:
    """Whether oneDNN is there, may be used, and has vectors of 512 bits."""
    able = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return bool(able and torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
