"""Rows of all processes come in the order of their ranks, and gradients go back to where a row came from."""

from __future__ import annotations

import torch

from tests.training import light_workers
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.losses.gather import gathered, processes, rank
from xmodal_kedro.training.launch import launch


def test_without_others_the_rows_are_ones_own() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert (processes(), rank()) == (1, 0)
    assert gathered(rows) is rows
    assert gathered(rows, grad=True) is rows


def test_rows_and_gradients_of_two_processes() -> None:
    found = launch(light_workers.gather_features, 3, RuntimeConfig(device="cpu", processes=2, threads=1))
    assert torch.equal(found["rows"], torch.arange(12.0).reshape(6, 2))
    # Rank 0 multiplies by 1, rank 1 by 2: the sum over both is what the rows of rank 0 get.
    assert torch.equal(found["gradient"], 3 * torch.arange(1.0, 7.0).reshape(3, 2))
    assert found["keys"].tolist() == [0, 1, 2, 100, 101, 102]
    assert found["averaged"].tolist() == [0.5, 3.0]
    assert found["said"].tolist() == [True, False]
