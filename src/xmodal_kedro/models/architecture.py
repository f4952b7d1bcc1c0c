"""A config of transformers from `backbone.architecture`, which names the key that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from xmodal_kedro.models.backbone import ArchitectureError

AnyConfig = TypeVar("AnyConfig", bound=PreTrainedConfig)
SECTIONS = ("vision_config", "text_config")


def check_sizes(kind: type[PreTrainedConfig], sizes: Mapping[str, Any]) -> None:
    """Refuse what transformers would take silently: a misspelt size would go unnoticed.

    Raises:
        ArchitectureError: Naming the keys.
    """
    known = kind().to_dict()
    for section in ("", *SECTIONS):
        given, there = (sizes.get(section, {}), known[section]) if section else (sizes, known)
        if not isinstance(given, Mapping):
            raise ArchitectureError(f"backbone.architecture.{section} must be a mapping, not {given!r}")
        if unknown := given.keys() - there.keys():
            names = ", ".join(".".join(filter(None, (section, key))) for key in sorted(unknown))
            raise ArchitectureError(f"backbone.architecture: {kind.__name__} knows no {names}")


def transformers_config(kind: type[AnyConfig], sizes: Mapping[str, Any]) -> AnyConfig:
    """Build the config of a model with an image and a text tower.

    Raises:
        ArchitectureError: Naming the key that is of the wrong type.
    """
    try:
        return kind(**sizes)
    except (StrictDataclassError, TypeError) as error:
        raise ArchitectureError(f"backbone.architecture is no config of {kind.__name__}: {error}") from error
