"""What processes that train one member together tell each other; with a single process nothing is sent.

Every process holds the whole model and computes an equal, contiguous share of each batch. Gradients are averaged, so
that all take the same step. Buffers are not averaged: BatchNorm computes with the rows of its process, and the running
statistics that are evaluated and written are those of rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xmodal_kedro.losses.gather import processes, rank

_BUCKET = 1 << 24  # numbers that travel in one message: 64 MB of fp32


def own_share(rows: int) -> slice:
    """Which rows of a batch are this process's: contiguous, so that gathering brings back the order of the batch."""
    share = rows // processes()
    return slice(rank() * share, (rank() + 1) * share)


def spread_weights(model: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    tensors = [*model.parameters(), *model.buffers()]
    _in_buckets((tensor.detach() for tensor in tensors), lambda flat: dist.broadcast(flat, 0))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes."""
    gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
    _in_buckets(gradients, _average)


def averaged(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Means over the processes of scalars that each of them has."""
    values = torch.stack([value.detach().double().cpu() for value in numbers.values()])
    if processes() > 1:
        _average(values)
    return dict(zip(numbers, values.tolist(), strict=True))


def said_by_first(answer: bool) -> bool:
    """What rank 0 answers; the others wait for it, however long it takes."""
    if processes() == 1:
        return answer
    said = torch.tensor(int(answer))
    dist.broadcast(said, 0)
    return bool(said)


def _average(values: Tensor) -> None:
    dist.all_reduce(values)
    values /= processes()


def _in_buckets(tensors: Iterable[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """Exchange tensors in place, many in one message: a message has a price whatever its size."""
    if processes() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        exchange(flat)
        for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(values.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of neighbours of one type, of `_BUCKET` numbers or a single larger tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(other.numel() for other in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
