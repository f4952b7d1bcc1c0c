"""Two processes train as one does, and their errors come back."""

from __future__ import annotations

import signal
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from tests.models.small import small_backbone
from tests.training import light_workers, workers
from tests.training.test_loop import config, examples, images
from tests.training.workers import Training
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import LossConfig
from xmodal_kedro.training import device, processes
from xmodal_kedro.training.device import count_processes
from xmodal_kedro.training.launch import ProcessError, launch
from xmodal_kedro.training.loop import train

TWO = RuntimeConfig(device="cpu", processes=2, threads=1)
VIEWS = {"augment": {"scale": [0.5, 1.0], "flip": 0.5}}
# 24 pairs: batches of 6 rows are shared by two without a rest.
TRAININGS = {
    "plain": Training("open_clip", {"batch_size": 6, "lr": 1e-4}),
    "views": Training("open_clip", {"batch_size": 6, "lr": 1e-4, **VIEWS}),
    "loss": Training(
        "open_clip",
        {"batch_size": 6, "lr": 1e-4, "loss": LossConfig(truncation=0.2, label_smoothing=0.1, directions="sum")},
    ),
    "micro": Training("open_clip", {"batch_size": 8, "lr": 1e-4, "micro_batch": 3, **VIEWS}),
    "best": Training("open_clip", {"batch_size": 6, "keep": "best", "epochs": 6, "patience": 2}, [0.1, 0.5, 0.3, 0.2]),
    "uneven": Training("open_clip", {"batch_size": 7, "lr": 1e-4}),
    "blip": Training("blip", {"batch_size": 6, "epochs": 1}),
}


@pytest.fixture(scope="module")
def together() -> dict[str, Any]:
    """All trainings by two processes."""
    return dict(zip(TRAININGS, launch(workers.train_all, list(TRAININGS.values()), TWO), strict=True))


@pytest.mark.parametrize("name", ["plain", "views", "loss", "micro", "best"])
def test_two_processes_give_the_weights_of_one(name: str, together: dict[str, Any]) -> None:
    ours, history, best, seen, count = together[name]
    (alone,) = workers.train_all([TRAININGS[name]])
    assert (count, alone[4]) == (2, 1)
    assert [step for step, _ in seen] == [step for step, _ in alone[3]]
    assert [loss for _, loss in seen] == pytest.approx([loss for _, loss in alone[3]], abs=2e-5)
    assert best == alone[2]
    pd.testing.assert_frame_equal(
        history.drop(columns="pairs_per_second"), alone[1].drop(columns="pairs_per_second"), atol=2e-5
    )
    untrained = small_backbone("open_clip").state_dict()
    for parameter, value in alone[0].items():
        torch.testing.assert_close(ours[parameter], value, atol=3e-5, rtol=0, msg=lambda m, p=parameter: f"{p}: {m}")
    assert not all(torch.equal(ours[parameter], value) for parameter, value in untrained.items())


def test_the_best_epoch_of_two_is_that_of_the_first(together: dict[str, Any]) -> None:
    _, history, best, _, _ = together["best"]
    assert best == 1
    assert history["epoch"].tolist() == [0, 1, 2, 3]  # patience ended it for both


def test_uneven_batches_are_shared_evenly(together: dict[str, Any]) -> None:
    """Batches of 7 hold 6 rows here; nothing waits for a row that another has."""
    assert [step for step, _ in together["uneven"][3]] == list(range(1, 9))


def test_a_loss_of_each_process_is_averaged(together: dict[str, Any]) -> None:
    losses = [loss for _, loss in together["blip"][3]]
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("error", r"NoSuchKeyError: 'colour' \(process 2 of the 2 that train together\)"),
        ("killed", r"process 2 of the 2 .*Signal 9 \(SIGKILL\).*too little memory"),
    ],
)
def test_the_first_error_comes_back(how: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ProcessError, match=message) as error:
        launch(light_workers.fail, how, TWO)
    assert how == "killed" or "Traceback" in error.value.__notes__[0]
    assert not caplog.records  # the error is enough
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_ctrl_c_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(light_workers.fail, "interrupt", TWO)


def test_one_process_is_this_one() -> None:
    assert launch(id, None, RuntimeConfig(device="cpu")) == id(None)
    assert not torch.distributed.is_initialized()


def test_a_batch_is_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kedro.training.loop.processes", lambda: 9)
    with pytest.raises(ValueError, match=r"member: train.batch_size 7 is shared by 9 processes"):
        train(small_backbone("open_clip"), images(), examples(), None, config())


@pytest.mark.parametrize(
    ("asked", "gpus", "count"),
    [
        ({}, 4, 1),
        ({"processes": "auto"}, 4, 4),
        ({"processes": "auto"}, 0, 1),
        ({"processes": "auto", "device": "cpu"}, 4, 1),
        ({"processes": "auto", "device": "cuda:2"}, 4, 1),
        ({"processes": 3}, 4, 3),
        ({"processes": 3}, 0, 3),
        ({"processes": 8, "device": "cpu"}, 4, 8),
    ],
)
def test_how_many_processes(asked: dict[str, Any], gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: gpus)
    assert count_processes(RuntimeConfig(**asked)) == count


@pytest.mark.parametrize("asked", [{"processes": 5}, {"processes": 2, "device": "cuda:1"}])
def test_each_process_needs_a_gpu_of_its_own(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"runtime.processes is \d.*GPUs for them"):
        count_processes(RuntimeConfig(**asked))


@pytest.mark.parametrize(("sizes", "messages"), [([3, 3, 3, 3], 2), ([9, 1, 1], 2), ([2], 1), ([], 0)])
def test_tensors_travel_together_and_come_back_to_their_places(
    sizes: list[int], messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(processes, "processes", lambda: 2)
    monkeypatch.setattr(processes, "_BUCKET", 7)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda flat: (sent.append(flat.clone()), flat.add_(2)))
    parameters = [nn.Parameter(torch.zeros(size, 1)) for size in sizes]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full((len(parameter), 1), float(number))
    processes.average_gradients([*parameters, nn.Parameter(torch.zeros(3))])  # the last one has no gradient
    assert len(sent) == messages
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None
        assert parameter.grad.flatten().tolist() == [(number + 2) / 2] * len(parameter)
