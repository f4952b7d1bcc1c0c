"""What `backbone.weights` may say: a directory, a file, a model on the hub, or a model of open_clip with a tag."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HUB_SCHEME = "hf-hub:"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAG = re.compile(r"([\w.-]+):([\w.-]+)")


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from; `missing` is what looks like a path and is not there."""

    kind: Literal["directory", "file", "hub", "tag", "missing"]
    path: Path  # what the words mean as a path
    hub_id: str = ""  # owner/name
    model: str = ""  # open_clip's name of an architecture,
    tag: str = ""  # and of weights for it


def weights_source(weights: str, root: Path = Path()) -> WeightsSource:
    """Tell the forms apart: `models/clip`, `model.bin`, `owner/name`, `hf-hub:owner/name`, `ViT-B-32:openai`.

    Args:
        weights: As the config has it.
        root: Folder that relative paths start from.
    """
    path = root / Path(weights).expanduser()
    if path.is_dir():
        return WeightsSource("directory", path)
    if path.is_file():
        return WeightsSource("file", path)
    name = weights.removeprefix(HUB_SCHEME)
    # `owner/name` may also be a relative directory that was misspelt: its parent gives it away.
    if _HUB_ID.fullmatch(name) and (name != weights or not path.parent.is_dir()):
        return WeightsSource("hub", path, hub_id=name)
    if name == weights and (match := _TAG.fullmatch(weights)):
        return WeightsSource("tag", path, model=match[1], tag=match[2])
    return WeightsSource("missing", path)


def weights_at(weights: str, root: Path) -> str:
    """The whole path of weights that lie, or should lie, below `root`; hub ids and tags stay as they are."""
    source = weights_source(weights, root)
    return weights if source.kind in ("hub", "tag") else str(source.path.absolute())


def unsupported(family: str, weights: str) -> str | None:
    """Why a published model cannot be had, by its name alone; None where nothing speaks against it."""
    name = Path(weights).name.lower()
    if family == "chinese_clip" and re.search(r"(chinese-clip-|clip_cn_)rn50", name):
        return (
            f"'{weights}' is not supported: transformers has no Chinese-CLIP with a ResNet. Take one with a ViT, such "
            "as OFA-Sys/chinese-clip-vit-base-patch16"
        )
    if family == "chinese_clip" and re.fullmatch(r"clip_cn_.*\.pt", name):
        return (
            f"'{weights}' is not supported: it has the tensor names of the original code. Take the directory of the "
            "same model in transformers' layout (config.json, vocab.txt, pytorch_model.bin), such as that of "
            "OFA-Sys/chinese-clip-vit-base-patch16"
        )
    if family != "open_clip" and weights_source(weights).kind == "tag":
        return f"'{weights}' is no directory; model:tag is for open_clip alone"
    return None
