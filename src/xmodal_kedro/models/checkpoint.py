"""A checkpoint directory: enough to run a member anywhere, without the code or data that trained it.

weights.safetensors   tensors under the names of the family's library, adapters always merged
adapter/              LoRA alone, in addition, as peft reads it
member.yaml           the member's config
metrics.json          what it reached
MANIFEST.json         sizes, sha256 and fingerprints; written last, without it there is no checkpoint
...                   configuration, tokenizer and preprocessing files of the library
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.manifest import fingerprint, read_manifest, seal, sha256_of
from xmodal_kedro.models import family
from xmodal_kedro.models.backbone import WEIGHTS, Backbone
from xmodal_kedro.models.lora import ADAPTER, write_adapter

KIND = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, ready to encode."""

    backbone: Backbone  # on the device, in eval mode
    member: MemberConfig
    metrics: dict[str, float]
    fingerprints: dict[str, str]  # `weights`, `transform`, and those that were given when it was written


def write_checkpoint(
    directory: Path,
    backbone: Backbone,
    member: MemberConfig,
    metrics: Mapping[str, float],
    fingerprints: Mapping[str, str],
) -> dict[str, str]:
    """Write a checkpoint into a new or empty directory.

    Args:
        directory: A half-written one is no checkpoint: it has no manifest.
        backbone: Any device.
        member: Its config, with its name.
        metrics: What it reached on dev.
        fingerprints: Of what made it, such as `data`; `weights` and `transform` are added.

    Returns:
        All fingerprints.

    Raises:
        FileExistsError: The directory holds something.
    """
    made = write_model(directory, backbone)
    if (lora := member.backbone.lora) is not None:
        write_adapter(backbone.model, lora, member.backbone.weights, directory / ADAPTER)
    write_facts(directory, "member.yaml", member.model_dump(), metrics)
    made_by = {**fingerprints, **made}
    seal(directory, KIND, **made_by)
    return made_by


def write_model(directory: Path, backbone: Backbone) -> dict[str, str]:
    """Write all that loading a model wants into a new or empty directory; returns its fingerprints.

    Raises:
        FileExistsError: The directory holds something.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: a checkpoint is written into a directory of its own")
    backbone.save_settings(directory)
    preprocessing = {
        "files": {path.name: sha256_of(path) for path in directory.iterdir()},
        "image": [backbone.image_size, backbone.mean, backbone.std],
    }
    backbone.save_weights(directory / WEIGHTS)
    return {"weights": sha256_of(directory / WEIGHTS), "transform": fingerprint(preprocessing)}


def write_facts(directory: Path, name: str, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Write the config that made a model, under its file's name, and what the model reached."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    (directory / name).write_text(text, encoding="utf-8")
    (directory / "metrics.json").write_text(json.dumps(dict(metrics), indent=2))


def read_checkpoint(directory: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint.

    Args:
        directory: As `write_checkpoint` left it.
        device: Where the backbone goes.

    Raises:
        BrokenArtifactError: There is no manifest, or files are missing or cut short.
    """
    manifest = read_manifest(directory, KIND)
    member = MemberConfig.model_validate(yaml.safe_load((directory / "member.yaml").read_text(encoding="utf-8")))
    backbone = family(member.backbone.name).from_pretrained(directory)
    if member.backbone.context is not None:
        backbone.limit_context(member.backbone.context)
    metrics = json.loads((directory / "metrics.json").read_text())
    return Checkpoint(backbone.to(device).eval(), member, metrics, manifest["fingerprints"])
