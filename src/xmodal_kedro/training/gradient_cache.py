"""The exact gradient of a large batch with the activations of one micro-batch in memory (GradCache, arXiv 2101.06983).

The contrastive loss of a batch needs all of its features, but no activation. So features are computed without a graph,
one micro-batch after the other; the loss of the whole batch and its gradient on the features follow; then each
micro-batch is computed again, with a graph, and the gradient of its features is sent backward. Dropout falls the same
way both times, because the random state is replayed. The price is a second forward pass.

BatchNorm normalises with the rows of a micro-batch, not of the batch, as in any training with smaller batches: for such
towers the result is that of the batch cut up, which is what `uses_batch_statistics` is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xmodal_kedro.models.backbone import Backbone, Batch, TrainState


def cached_backward(
    backbone: Backbone, batch: Batch, state: TrainState, micro_batch: int, autocast: AbstractContextManager[object]
) -> dict[str, Tensor]:
    """Do what `training_step` and `backward` of its loss do, a micro-batch at a time.

    Args:
        backbone: A `dual` one: its loss is a function of the features. Gradients are added to its parameters'.
        batch: Of this process; its last micro-batch may be smaller.
        state: For the loss.
        micro_batch: Pairs that are computed at once.
        autocast: Entered for every pass forward, and left for those backward.

    Returns:
        The losses, detached; `loss` is the one whose gradient was taken.
    """
    parts = list(_parts(batch, micro_batch))
    states: list[list[Tensor]] = []
    features: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad(), _untouched_statistics(backbone), autocast:
        for part in parts:
            states.append(_random_state(batch.pixels.device))
            features.append(backbone.features(part))
    image, text = (torch.cat(side).requires_grad_() for side in zip(*features, strict=True))
    with autocast:
        losses = backbone.feature_losses(image, text, batch.keys, state)
    losses["loss"].backward()
    gradients = zip(*(side.grad.split(micro_batch) for side in (image, text) if side.grad is not None), strict=True)
    for part, random_state, gradient in zip(parts, states, gradients, strict=True):
        _set_random_state(random_state, batch.pixels.device)
        with autocast:
            again = backbone.features(part)
        # A tower that is frozen has nothing to send backward.
        alive = [(side, grad) for side, grad in zip(again, gradient, strict=True) if side.requires_grad]
        torch.autograd.backward([side for side, _ in alive], [grad for _, grad in alive])
    return {name: loss.detach() for name, loss in losses.items()}


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a module normalises with the rows that it is shown, so that their number changes what it computes."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return any(not norm.affine or norm.weight.requires_grad for norm in norms)  # frozen ones stay in eval


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.pixels), size):
        rows = slice(start, start + size)
        yield Batch(batch.pixels[rows], {name: values[rows] for name, values in batch.tokens.items()})


def _random_state(device: torch.device) -> list[Tensor]:
    """State of the generators that dropout draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def _untouched_statistics(backbone: nn.Module) -> Iterator[None]:
    """Give running statistics back as they were: the second pass is the one that counts."""
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    before = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)
