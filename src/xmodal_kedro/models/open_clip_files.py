"""The files of an open_clip model: its config, its weights in any format, and what to do where one is missing."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from safetensors import SafetensorError
from torch import nn

from xmodal_kedro.models.backbone import ArchitectureError
from xmodal_kedro.models.published import PublishedWeightsError, converted, read_published

CONFIG = "open_clip_config.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def model_config(architecture: Mapping[str, object]) -> dict[str, Any]:
    """One of open_clip's configs by `model_name`, or the config that `architecture` itself is.

    Raises:
        ArchitectureError: It is neither; the key that is wrong is named.
    """
    config = dict(architecture)
    if "model_name" in config:
        name = str(config.pop("model_name"))
        known: dict[str, Any] | None = open_clip.get_model_config(name)
        if config:
            raise ArchitectureError(f"backbone.architecture.model_name stands alone, so {sorted(config)} must go")
        if known is None:
            close = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3))
            raise ArchitectureError(f"backbone: open_clip has no '{name}'; similar are {close or 'none'}")
        return known
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise ArchitectureError(f"backbone.architecture of open_clip wants model_name, or also {sorted(missing)}")
    return config


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill the model through open_clip's loader, which also knows the names of other codes.

    Raises:
        PublishedWeightsError: The file is damaged, or more than weights.
        ArchitectureError: The weights are those of another architecture.
    """
    if file.suffix != ".safetensors" and os.access(file.parent, os.W_OK):
        file = converted(file, lambda name: name)
    elif file.suffix != ".safetensors":
        read_published(file)  # open_clip itself would open any pickle where this one needs it
    try:
        open_clip.load_checkpoint(model, str(file))
    except torch.OutOfMemoryError:  # a RuntimeError, too
        raise
    except SafetensorError as error:
        raise PublishedWeightsError(f"{file} is cut short or no safetensors file. Copy it again.") from error
    except (RuntimeError, KeyError) as error:
        raise ArchitectureError(f"backbone.weights: {file} does not fit this architecture: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """Weight files of a directory, without what they were converted to."""
    if not directory.is_dir():
        return []
    files = [file for file in sorted(directory.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    return [file for file in files if file.with_suffix("") not in files]


def without_config(weights: Path) -> str:
    """What to do with weights that lie without their config."""
    return (
        f"{weights.absolute()} comes without {CONFIG}. Put that file beside the weights and give their directory, or "
        "say in backbone.architecture which one of open_clip's configs it is: {model_name: ViT-H-14}"
    )


def describes_text_tower(directory: Path) -> bool:
    """Whether config.json is that of the text tower: some published directories have one of a whole CLIP there."""
    file = directory / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("model_type") in arch_dict


def missing_text_tower(text: Mapping[str, Any]) -> str:
    """What to do where the text tower of a config (`text_cfg`) cannot be had."""
    return (
        f"backbone: the text tower is a '{text.get('hf_model_name')}' of transformers, and its config or tokenizer "
        "cannot be had. Put its config.json and tokenizer files (tokenizer.json, tokenizer_config.json, or "
        f"sentencepiece.bpe.model) beside {CONFIG} and set backbone.weights to that directory"
    )


def write_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    """Write the config (`model_cfg` and `preprocess_cfg`) as open_clip reads it."""
    (directory / CONFIG).write_text(json.dumps(settings, indent=2))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip from warning, in the root logger, about random weights and about the name of our weight file."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "open_clip" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_foreign)
    try:
        yield
    finally:
        root.removeFilter(is_foreign)
