"""Blocks of work side by side on a CPU: a thread per core, each of which computes alone.

Torch spreads every operation over all cores and waits for the slowest after each. Where a block of scores takes dozens
of short operations, the waiting costs as much as the work, and whatever else runs on the machine multiplies it. Threads
that each take a whole block wait for nobody, and a block small enough stays in the cache of its core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Block = TypeVar("Block")
Result = TypeVar("Result")

AHEAD = 2  # blocks per thread that are handed out before the first result is taken


def threads(device: torch.device) -> int:
    """Blocks at once: as many as torch has threads on a CPU (`torch.set_num_threads`), one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def side_by_side(work: Callable[[Block], Result], blocks: Sequence[Block], device: torch.device) -> Iterator[Result]:
    """The results of the blocks, in their order, whichever is ready first.

    A single block, and work for a GPU, stays in this thread. The first block in order that fails raises, and those that
    have not begun are dropped.
    """
    count = min(threads(device), len(blocks))
    if count < 2:
        yield from map(work, blocks)
        return
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    left = iter(blocks)
    with ThreadPoolExecutor(count, "block", initializer=_alone, initargs=(torch.is_grad_enabled(),)) as pool:
        try:
            for block in left:
                waiting.append(pool.submit(work, block))
                if len(waiting) >= AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
            torch.set_num_threads(before)  # of this thread it is unchanged; new ones would begin with 1


def _alone(grad: bool) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(grad)
