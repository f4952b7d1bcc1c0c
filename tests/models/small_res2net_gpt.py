"""A tiny image model of timm with a GPT over characters, and what tests of it compare: weights to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.models.small import SMALL, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.models import build

SIZES: dict[str, Any] = SMALL["res2net_gpt"].architecture or {}


def changed(**architecture: Any) -> BackboneConfig:
    return BackboneConfig(name="res2net_gpt", architecture={**SIZES, **architecture})


def small() -> Any:
    return small_backbone("res2net_gpt")


def load(directory: Path) -> Any:
    return build(BackboneConfig(name="res2net_gpt", weights=str(directory))).eval()


def same(left: nn.Module, right: nn.Module) -> bool:
    others = right.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in left.state_dict().items())
