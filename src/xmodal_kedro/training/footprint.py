"""What training a member takes - parameters, memory, operations - counted on the meta device, which holds no data.

Weights, gradients and AdamW's moments are counted from the parameters themselves. Activations are the tensors that a
forward pass keeps for its backward, as autograd asks for them, so checkpointing and fused attention count as they are.
Not counted: the allocator's slack, temporary buffers of kernels and the CUDA context (together a few GiB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from xmodal_kedro.config.member import TrainConfig
from xmodal_kedro.config.optimiser import OptimiserConfig
from xmodal_kedro.models.backbone import Backbone, Tokens
from xmodal_kedro.models.captioner import Captioner, caption_loss

GIB = float(1 << 30)
MATCHED = 3  # pairs that a matching head sees per pair of the batch: the right one, a wrong image and a wrong text


@dataclass(frozen=True)
class Footprint:
    """Of one process that trains; bytes, and floating-point operations (a multiply-add counts as two)."""

    parameters: int
    trainable: int
    weights: int  # the model, fp32, and what a momentum encoder copies of it
    gradients: int
    moments: int
    queues: int
    activations_per_pair: int
    flops_per_pair: int  # of the forward pass
    training_flops_per_pair: int  # of forward and backward, what checkpointing computes again included

    def total(self, pairs: int) -> int:
        """Bytes of a step that computes `pairs` at once."""
        return self.weights + self.gradients + self.moments + self.queues + pairs * self.activations_per_pair


class Counts(NamedTuple):
    """Of a forward pass: bytes kept for its backward (each tensor once, parameters not), and operations."""

    saved: int
    flops: int
    training_flops: int


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules built here have shapes and no data."""
    with torch.device("meta"):
        yield


def footprint(backbone: Backbone, config: TrainConfig, tokens: int) -> Footprint:
    """Count what a training step takes.

    Args:
        backbone: Built under `meta_device`, frozen and adapted as the member says, in training mode or not.
        config: Of its training. Activations of a step in bf16 are taken to be half of those in fp32: the matrix
            products are, norms and softmaxes are not quite.
        tokens: Length of a caption.
    """
    parameters = list(backbone.parameters())
    with meta_device():
        pixels = torch.empty(2, 3, backbone.image_size, backbone.image_size)
        ids = torch.ones(2, tokens, dtype=torch.long)
    pair = _counted(lambda: _encode(backbone, pixels, {"input_ids": ids, "attention_mask": ids}), parameters)
    if backbone.matches:
        matching = _matching(backbone, pixels, {"input_ids": ids, "attention_mask": ids}, parameters)
        pair = Counts(*(one + other for one, other in zip(pair, matching, strict=True)))
    found = _footprint(parameters, pair, config)
    if momentum := config.loss.momentum:
        queues = momentum.queue_size * (2 * 4 * backbone.embed_dim + 8)
        return replace(found, weights=2 * found.weights, queues=queues)
    return found


def captioner_footprint(captioner: Captioner, image_size: int, config: OptimiserConfig, tokens: int) -> Footprint:
    """Count what a step with one caption per image takes; the pairs are captions.

    Args:
        captioner: Built under `meta_device`, with what trains unfrozen.
        image_size: Side of its images, in pixels.
        config: As in `footprint`.
        tokens: Length of a caption.
    """
    parameters = list(captioner.parameters())
    with meta_device():
        pixels, ids = torch.empty(2, 3, image_size, image_size), torch.ones(2, tokens, dtype=torch.long)
    pair = _counted(lambda: caption_loss(captioner(pixels, ids), ids), parameters)
    return _footprint(parameters, pair, config)


def _footprint(parameters: list[nn.Parameter], pair: Counts, config: OptimiserConfig) -> Footprint:
    """Of a model without a copy of itself, by the counts of two pairs."""
    saved, flops, training_flops = (number // 2 for number in pair)
    count = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Footprint(
        parameters=count,
        trainable=trainable,
        weights=4 * count,
        gradients=4 * trainable,
        moments=8 * trainable,
        queues=0,
        activations_per_pair=saved // 2 if config.precision == "bf16" else saved,
        flops_per_pair=flops,
        training_flops_per_pair=training_flops,
    )


def _encode(backbone: Backbone, pixels: Tensor, tokens: Tokens) -> Tensor:
    return backbone.encode_image(pixels).sum() + backbone.encode_text(tokens).sum()


def _matching(backbone: Backbone, pixels: Tensor, tokens: Tokens, parameters: list[nn.Parameter]) -> Counts:
    """Of a matching head on image states that the loss has already."""
    with torch.no_grad():
        states = backbone.image_states(pixels)
    return Counts(*(MATCHED * count for count in _counted(lambda: backbone.match(states, tokens).sum(), parameters)))


def _counted(forward: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Counts:
    kept: dict[int, Tensor] = {}  # holding them keeps their identity from being used again
    own = {parameter.untyped_storage()._cdata for parameter in parameters}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, tensor)
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, _NoData():
        with saving:
            loss = forward()
        forward_flops = counter.get_total_flops()
        if loss.requires_grad:
            loss.backward()
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Counts(saved, forward_flops, counter.get_total_flops())


class _NoData(TorchDispatchMode):
    """Answers questions about values that no tensor holds here: no caption is padded."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))
