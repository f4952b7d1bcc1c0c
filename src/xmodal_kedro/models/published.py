"""Published `.pth`, `.pt` and `.bin` weights: read without running what they contain, converted once to safetensors.

A pickle can run any code when it is opened. Torch's `weights_only` reader opens the tensors alone and refuses the rest.
"""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Rename = Callable[[str], str | None]  # name of a tensor in the file -> its name in the model, or None to leave it out

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the weights


class PublishedWeightsError(ValueError):
    """A file holds no weights that can be read safely; the message says what it holds, and what to do."""


def read_published(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file on the CPU.

    Args:
        file: Of torch (`.pth`, `.pt`, `.bin`) or safetensors. The weights may lie under `state_dict` or `model`, and
            their names may start with `module.`, as training scripts leave them.

    Returns:
        Tensor by name.

    Raises:
        PublishedWeightsError: The file is damaged, needs more than tensors, or is not a table of tensors.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise PublishedWeightsError(f"{file} is cut short or no safetensors file. Copy it again.") from error
    try:
        # The old format is no archive and cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise PublishedWeightsError(
            f"{file} holds more than tensors{_named_code(error)}, and opening it could run code. Take the weights of "
            "this model as safetensors, or have whoever made it save its state_dict() alone."
        ) from None  # torch would advise to open it all the same
    except (RuntimeError, EOFError, ValueError) as error:
        if "TorchScript" in str(error):
            raise PublishedWeightsError(
                f"{file} is a TorchScript program, no table of tensors. Take the weights of this model as safetensors."
            ) from error
        raise PublishedWeightsError(f"{file} is cut short or no file of torch. Copy it again.") from error
    tensors = _unwrapped(content)
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        others = sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor))
        raise PublishedWeightsError(
            f"{file} holds no table of tensors by name, but {', '.join(others[:5]) or type(content).__name__}. "
            "Save the state_dict() of the model."
        )
    return tensors


def converted(file: Path, rename: Rename) -> Path:
    """Convert a published file to safetensors beside it, unless that has been done.

    Args:
        file: As `read_published` takes it.
        rename: Says under which name a tensor is wanted.

    Returns:
        `<file>.safetensors`, which is as new as the file.

    Raises:
        PublishedWeightsError: The file cannot be read, or nothing can be written beside it.
    """
    target = file.with_name(f"{file.name}.safetensors")
    made_of = {"format": "pt", "bytes": str(file.stat().st_size), "changed": str(file.stat().st_mtime_ns)}
    if _metadata(target) == made_of:
        return target
    tensors = _renamed(read_published(file), rename)
    try:
        handle, unfinished = tempfile.mkstemp(dir=file.parent, prefix=f".{target.name}.")
        os.close(handle)
    except OSError as error:
        raise PublishedWeightsError(
            f"{target} cannot be written ({error.strerror}). Copy {file.name} into a folder of your own, or convert it "
            "once as a user who may write there."
        ) from error
    try:
        save_file(tensors, unfinished, metadata=made_of)
        os.replace(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return target


def load_published(file: Path, rename: Rename) -> dict[str, Tensor]:
    """Tensors of a published file under the names that `rename` gives, through the conversion where it can be written.

    Raises:
        PublishedWeightsError: The file cannot be read.
    """
    if not os.access(file.parent, os.W_OK):
        warnings.warn(f"{file.parent} is read-only: {file.name} is converted again at each load", stacklevel=2)
        return _renamed(read_published(file), rename)
    return load_file(converted(file, rename))


def _unwrapped(content: Any) -> dict[str, Any]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        return {}
    names = [str(name) for name in content]
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def _renamed(tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """Tensors of their own memory: safetensors refuses those that share it."""
    pairs = ((rename(name), tensor) for name, tensor in tensors.items())
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in pairs if name is not None}


def _metadata(file: Path) -> dict[str, str] | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata: dict[str, str] | None = tensors.metadata()
    except SafetensorError:  # cut short: it is made again
        return None
    return metadata


def _named_code(error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""
