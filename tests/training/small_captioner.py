"""A captioner of a few thousand weights and captions in four colours, for tests that train one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from xmodal_kedro.captioning.checkpoint import PackedCaptioner
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.config.captioning import CaptioningConfig, CaptionTrainConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.training.captions import CaptionTrainResult, train_captioner

SIDE, MEAN, STD = 6, 0.5, 0.25
COLOURS = {"红": (220, 30, 30), "绿": (30, 200, 40), "蓝": (30, 40, 220), "白": (240, 240, 240)}
ENDINGS = ["车", "色的车", "车停在路边上", "", "车一辆"]  # of different lengths
IMAGES = 8
VIEWS = {"augment": {"scale": [0.4, 1.0], "flip": 0.5}}
CAPTIONING = CaptioningConfig(decoding=DecodingConfig(max_steps=9))


def images() -> np.ndarray:
    """Noisy squares in four colours."""
    base = np.array([list(COLOURS.values())[row % 4] for row in range(IMAGES)])[:, None, None]
    noise = np.random.default_rng(0).integers(-25, 25, (IMAGES, SIDE, SIDE, 3))
    return (base + noise).clip(0, 255).astype(np.uint8)


def examples() -> pd.DataFrame:
    """One to five captions per image, 22 of them, in no order."""
    counts = [5, 3, 1, 2, 5, 1, 2, 3]
    rows = [(row, list(COLOURS)[row % 4] + ENDINGS[number]) for row in range(IMAGES) for number in range(counts[row])]
    table = pd.DataFrame(rows, columns=["image_row", "text"])
    return table.sample(frac=1, random_state=3).reset_index(drop=True)


def small_captioner(seed: int = 0, dropout: float = 0.0) -> PackedCaptioner:
    """Without backbone, BatchNorm or files."""
    vocabulary = Characters.learn(["".join(COLOURS) + "".join(ENDINGS)])
    sizes = GPTSizes(vocab_size=len(vocabulary), layers=1, heads=2, width=16, block_size=10, dropout=dropout)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, sizes.width))
        captioner = Captioner(encoder, GPT(sizes), vocabulary)
    transform = ImageTransform(SIDE, (MEAN,) * 3, (STD,) * 3)
    return PackedCaptioner("small", captioner.eval(), transform)


def config(**changes: Any) -> CaptionTrainConfig:
    """Two quick epochs at a constant rate."""
    settings = {"epochs": 2, "lr": 3e-3, "batch_size": 7, "schedule": "constant", "weight_decay": 0.0, "keep": "last"}
    return CaptionTrainConfig(**{**settings, **changes})


def weights(captioner: PackedCaptioner) -> dict[str, torch.Tensor]:
    """Copies of all weights."""
    return {name: value.clone() for name, value in captioner.captioner.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def train(
    captioner: PackedCaptioner, evaluate: Any = None, report: Any = None, state: Any = None, **settings: Any
) -> CaptionTrainResult:
    """Train it on all captions."""
    chosen = config(**settings)
    return train_captioner(captioner, images(), examples(), evaluate, chosen, CAPTIONING, report=report, state=state)


def right_colours(captioner: PackedCaptioner) -> dict[str, float]:
    """Share of images whose greedy caption begins with their colour."""
    found = decode(captioner, torch.from_numpy(images()), DecodingConfig(max_steps=9))
    right = [caption.text[:1] == list(COLOURS)[row % 4] for row, caption in enumerate(found)]
    return {"cider_d_characters": float(np.mean(right)), "distinct_captions": 0.5, "repetition": 0.0}
