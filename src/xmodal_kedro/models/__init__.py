"""Backbones: one file per model family behind one interface, found by name."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.config.weights import unsupported
from xmodal_kedro.models.backbone import CLEAR, REGISTRY, ArchitectureError, Backbone
from xmodal_kedro.models.lora import add_lora
from xmodal_kedro.models.weights import MissingWeightsError, library_errors

LOG = logging.getLogger(__name__)

__all__ = ["build", "family", "registered", "writers"]


def registered() -> dict[str, type[Backbone]]:
    """Every backbone by name; imports their libraries."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return dict(REGISTRY)


def family(name: str) -> type[Backbone]:
    """Find a backbone by name, importing no library but its own.

    Raises:
        ValueError: There is none of that name.
    """
    if name.isidentifier() and find_spec(f"{__name__}.{name}"):  # the module of a family bears its name
        import_module(f"{__name__}.{name}")
    if name not in REGISTRY:
        raise ValueError(f"backbone.name '{name}' is unknown: there are {', '.join(sorted(registered()))}")
    return REGISTRY[name]


def writers() -> list[str]:
    """The names of the families that write captions."""
    return sorted(name for name, backbone in registered().items() if backbone.writes)


def build(config: BackboneConfig, seed: int = 0, texts: Sequence[str] = (), root: Path | None = None) -> Backbone:
    """Build the backbone of a member, frozen as its config says.

    Args:
        config: Names the family and either pretrained weights or the architecture of a model with random ones; both
            for weights of open_clip that lie without their open_clip_config.json.
        seed: Of random weights.
        texts: Train texts, for families that learn a vocabulary with random weights.
        root: Folder that relative paths of the config start from, if not from the working directory.

    Raises:
        ValueError: The name is not registered, neither `weights` nor `architecture` is given, or both to a family that
            reads its architecture from the files of the weights, or the model cannot do what else the config asks for.
        MissingWeightsError: The pretrained files are not there.
        ArchitectureError: The architecture is none.
    """
    backbone_type = family(config.name)
    if root is not None:
        config = config.at(root, backbone_type.architecture_files)
    if config.weights is None and config.architecture is None:
        raise ValueError(f"backbone '{config.name}' needs either weights (pretrained) or architecture (random weights)")
    if config.weights is None:
        with library_errors(lambda what: ArchitectureError(_no_model(config.name, what)), *CLEAR, OSError):
            backbone = backbone_type.from_config(config.architecture or {}, seed, texts)
    elif reason := unsupported(config.name, config.weights):
        raise MissingWeightsError(f"backbone.weights: {reason}")
    elif config.architecture is None:
        backbone = backbone_type.from_pretrained(config.weights)
    else:
        backbone = backbone_type.from_published(config.weights, config.architecture)
    if config.context is not None:
        backbone.limit_context(config.context)
    if config.grad_checkpointing:
        backbone.set_grad_checkpointing()
    backbone.freeze(config.unlocked_groups)
    if config.lora is not None:
        counts = add_lora(backbone, config.lora, seed)
        LOG.info("LoRA adapts %s projections", " and ".join(f"{count} {tower}" for tower, count in counts.items()))
    return backbone


def _no_model(name: str, what: str) -> str:
    return f"backbone.architecture: '{name}' can build no model of these sizes ({what})"
