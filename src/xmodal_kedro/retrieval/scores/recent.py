"""What was made of a block lately: whoever streams asks for the same block of queries tile after tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from xmodal_kedro.retrieval.workers import threads

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values of as many blocks as threads may be at work. These share it: at worst one of them makes a value again."""

    def __init__(self, device: torch.device) -> None:
        self._kept = threads(device)
        self._values: dict[tuple[int, int], Value] = {}

    def get(self, block: slice, make: Callable[[slice], Value]) -> Value:
        """The value of a block, made if it is not there."""
        key = (block.start, block.stop)
        value = self._values.get(key)
        if value is None:
            for old in list(self._values)[: len(self._values) + 1 - self._kept]:
                self._values.pop(old, None)
            value = self._values[key] = make(block)
        return value
