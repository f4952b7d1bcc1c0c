"""Captioners that take packed pixels: begun from a member, written as a checkpoint, opened from it or from any weights.

A captioner's checkpoint is laid out as a member's (models/checkpoint.py), with `captioner.yaml` in place of
`member.yaml`: the name of the family, and the captioner's config. The family opens it as a member's weights, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from xmodal_kedro.captioning.captioner import Vocabulary
from xmodal_kedro.config.captioning import CaptionerConfig
from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.config.weights import weights_at
from xmodal_kedro.data.manifest import BrokenArtifactError, read_manifest, seal
from xmodal_kedro.models import family, writers
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.models.checkpoint import write_facts, write_model
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.models.weights import find_weights

KIND = "captioner"
CONFIG = "captioner.yaml"


@dataclass(frozen=True)
class PackedCaptioner:
    """A captioner of packed squares [B, S, S, 3] uint8, which lie on its device."""

    name: str
    captioner: Any  # models.captioner.Captioner, which can be trained, or a TransformersCaptioner; both are modules
    transform: ImageTransform  # to what it looks at
    backbone: Backbone | None = None  # whose parts the captioner is made of; one of transformers has none

    @property
    def vocabulary(self) -> Vocabulary:
        """The captioner's."""
        vocabulary: Vocabulary = self.captioner.vocabulary
        return vocabulary

    def image_transform(self, *, train: bool, augment: AugmentConfig | None = None) -> ImageTransform:
        """From packed squares to the captioner's input; `augment` counts for training alone."""
        one = self.transform
        return ImageTransform(one.size, one.mean, one.std, augment if train else None)

    def begin(self, images: Tensor, steps: int) -> Any:
        """Packed squares [B, S, S, 3] to a state of B rows."""
        return self.captioner.begin(self.transform(images), steps)

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Append ids [B]; logits [B, V] of what follows, and the new state."""
        stepped: tuple[Tensor, Any] = self.captioner.step(ids, state)
        return stepped

    def select(self, state: Any, rows: Tensor) -> Any:
        """A state with these rows [R] of another."""
        return self.captioner.select(state, rows)

    def to(self, device: torch.device | str) -> Self:
        """Move all weights, in place."""
        (self.captioner if self.backbone is None else self.backbone).to(device)
        return self

    def train(self, mode: bool = True) -> Self:
        """As of a module; a frozen image encoder stays in eval."""
        self.captioner.train(mode)
        return self

    def eval(self) -> Self:
        """As of a module."""
        return self.train(False)


def begin_captioner(
    backbone: Backbone, config: CaptionerConfig, *, grad_checkpointing: bool = False
) -> PackedCaptioner:
    """Make a captioner of a member's model, ready to train.

    What was frozen for the member is not for its captioner: all parts train that write captions, but for the image
    encoder where `train.image_encoder` is false.

    Args:
        backbone: Of the member, loaded; the captioner takes its parts, and trains them.
        config: Its `mean` and `std`, where they are set, become the backbone's.
        grad_checkpointing: As of the member: activations of the image encoder are computed again in backward.

    Raises:
        ValueError: Models of this family do not write captions, or this one cannot do `grad_checkpointing`.
    """
    captioner = _writer(backbone, f"{config.name}.member: '{config.member}'")
    if grad_checkpointing:
        backbone.set_grad_checkpointing()
    backbone.mean, backbone.std = tuple(config.mean or backbone.mean), tuple(config.std or backbone.std)
    backbone.requires_grad_(False)
    captioner.requires_grad_(True)
    captioner.image_encoder.requires_grad_(config.train is None or config.train.image_encoder)
    return PackedCaptioner(config.name, captioner, backbone.image_transform(train=False), backbone)


def write_captioner(
    directory: Path,
    backbone: Backbone,
    config: CaptionerConfig,
    metrics: Mapping[str, float],
    fingerprints: Mapping[str, str],
) -> dict[str, str]:
    """Write a captioner's checkpoint into a new or empty directory.

    Args:
        directory: A half-written one is no checkpoint: it has no manifest.
        backbone: Of the captioner, on any device.
        config: Of the captioner, with its name.
        metrics: What it reached on dev.
        fingerprints: Of what made it, such as `captions`; `weights` and `transform` are added.

    Returns:
        All fingerprints.

    Raises:
        FileExistsError: The directory holds something.
    """
    made = write_model(directory, backbone)
    write_facts(directory, CONFIG, {"backbone": backbone.name, **config.model_dump()}, metrics)
    made_by = {**fingerprints, **made}
    seal(directory, KIND, **made_by)
    return made_by


def open_captioner(
    source: Path | CaptionerConfig, project: Path, device: torch.device | str = "cpu"
) -> PackedCaptioner:
    """Open a captioner, in eval mode.

    Args:
        source: The directory of its checkpoint, or its config, which names weights of its own.
        project: Folder that relative paths start from.
        device: Where the captioner goes.

    Raises:
        BrokenArtifactError: The directory is no captioner's checkpoint, or its files are missing or damaged.
        MissingWeightsError: The weights are not there; naming the key and what is wanted where.
        ValueError: The config names a member, or weights of a model that does not write captions.
    """
    opened = _from_config(source, project) if isinstance(source, CaptionerConfig) else _from_files(project / source)
    return opened.to(device).eval()


def _from_files(directory: Path) -> PackedCaptioner:
    kind = read_manifest(directory)["kind"]
    if kind != KIND:
        raise BrokenArtifactError(
            f"{directory} holds {kind}, not {KIND}. From a member's checkpoint a captioner is trained: name the member "
            "in the parameters of one, and take the checkpoint that kedro run --pipelines=caption writes"
        )
    facts = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    backbone = family(facts["backbone"]).from_pretrained(directory)
    captioner = _writer(backbone, str(directory))
    return PackedCaptioner(facts["name"], captioner, backbone.image_transform(train=False), backbone)


def _from_config(config: CaptionerConfig, project: Path) -> PackedCaptioner:
    if config.weights is None:
        raise ValueError(
            f"captioner '{config.name}' begins with the member '{config.member}' and has no weights of its own: open "
            "the checkpoint that its training wrote"
        )
    from xmodal_kedro.captioning.transformers_captioner import TransformersCaptioner, load_captioner  # seconds

    directory = find_weights(weights_at(config.weights, project), TransformersCaptioner, f"{config.name}.weights")
    captioner = load_captioner(directory)
    return PackedCaptioner(config.name, captioner, captioner.image_transform)


def _writer(backbone: Backbone, whose: str) -> Any:
    """The captioner of a model.

    Raises:
        ValueError: Naming whose model it is and the families that write captions.
    """
    if not backbone.writes:
        raise ValueError(
            f"{whose} has a backbone '{backbone.name}', which does not write captions. Backbones that do: "
            f"{', '.join(writers())}"
        )
    return backbone.captioner()
