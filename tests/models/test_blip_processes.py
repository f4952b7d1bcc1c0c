"""BLIP in two processes: alignment and matching over the pairs of both, as in one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.models.small import SIZE, TEXTS, small_backbone
from xmodal_kedro.config.member import LossConfig, MomentumConfig, TrainConfig
from xmodal_kedro.models.backbone import Batch, TrainState

LOSSES = {
    "plain": LossConfig(),
    "momentum": LossConfig(momentum=MomentumConfig(queue_size=3, momentum=0.9, ramp_epochs=0)),
    "local": LossConfig(momentum=MomentumConfig(queue_size=3, momentum=0.9, negatives="local")),
}
KEYS = [[0, 1], [2, 0], [3, 4]]


def pixels(seed: int) -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def steps(kind: str, rows: slice) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Losses of three steps and the gradients of the last, on some rows of batches of two pairs."""
    torch.set_num_threads(1)
    backbone, loss = small_backbone("blip"), LOSSES[kind]
    backbone.begin_training(TrainConfig(epochs=1, batch_size=2, lr=1e-3, loss=loss))
    results = []
    for step, keys in enumerate(KEYS):
        # Texts of different lengths, each trimmed in its process.
        batch = Batch(pixels(step)[rows], backbone.tokenize(TEXTS[step : step + 2][rows]), torch.tensor(keys)[rows])
        backbone.zero_grad()
        losses = backbone.training_step(batch, TrainState(step, 100, 10, loss))
        losses["loss"].backward()
        results.append({name: value.item() for name, value in losses.items()})
    return results, [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {kind: steps(kind, slice(rank, rank + 1)) for kind in LOSSES}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_a_pair_each_are_one_with_both(tmp_path: Path) -> None:
    """A process with one pair has no negative of its own: all come from the other, and only when they may."""
    torch.multiprocessing.set_forkserver_preload([__name__])  # both are forked from one that has imported everything
    torch.multiprocessing.start_processes(process, (str(tmp_path),), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in ("plain", "momentum"):
        expected, gradients = steps(kind, slice(None))
        for step, losses in enumerate(expected):
            for name, value in losses.items():
                mean = sum(process[kind][0][step][name] for process in found) / 2
                assert mean == pytest.approx(value, abs=1e-5), (kind, step, name)
        for one, other, both in zip(found[0][kind][1], found[1][kind][1], gradients, strict=True):
            torch.testing.assert_close((one + other) / 2, both, atol=1e-5, rtol=1e-4)
    alone = [process["local"][0] for process in found]
    together = [process["momentum"][0] for process in found]
    assert all(
        one["itm"] != pytest.approx(other["itm"], abs=1e-4)
        for here, there in zip(alone, together, strict=True)
        for one, other in zip(here, there, strict=True)
    )
