"""Before the first node: can the models that begin with random weights be built as their recipe says?

Each is built as the run will build it, but on torch's meta device: shapes without data, in about a second at any size,
and next to no memory. Nothing is fetched and no weights are read, so some things stay open until the run builds the
model: whether weights of its parts fit; a text tower and a tokenizer that open_clip takes from the hub (the image tower
and the keys of the text tower are looked at); what depends on a vocabulary that is learned from the train texts; and a
model that asks for its own numbers while it is built.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.data.findings import Report

if TYPE_CHECKING:
    from xmodal_kedro.models.backbone import Backbone

_TEXTS = ("a",)  # a vocabulary is learned from, where the train texts will be there later
_NO_DATA = re.compile(r"\bmeta (tensor|device)|\bdevice meta\b", re.IGNORECASE)  # where torch is asked for numbers
_OF_THE_HUB = ("hf_model_name", "hf_tokenizer_name")
_OF_ITS_TOKENIZER = ("tokenizer_mode", "tokenizer_kwargs")


def check_architecture(
    name: str, backbone: BackboneConfig, project: Path, refused: Collection[str], report: Report
) -> Backbone | None:
    """Build a model with random weights on the meta device, frozen, adapted and cut as its config says.

    Args:
        name: Of the member.
        backbone: Its model, of a family that is registered.
        project: Folder that relative paths start from.
        refused: Keys of `architecture` that are known to be wrong: they are left out.
        report: Takes what is wrong, with its key.

    Returns:
        The model, of shapes alone, and with a text tower of open_clip's own in place of one of the hub; none where it
        could not be built.
    """
    import torch

    from xmodal_kedro.models import build

    if backbone.architecture is not None:
        sizes = {key: value for key, value in backbone.architecture.items() if key not in refused}
        backbone = backbone.model_copy(update={"architecture": sizes})
    if backbone.name == "open_clip":
        backbone = _without_hub(backbone)
    try:
        with torch.device("meta"):
            return build(backbone, texts=_TEXTS, root=project)
    except (OSError, RuntimeError, ValueError) as error:  # missing files, broken ones, and all else
        if not any(_asks_for_numbers(cause) for cause in _causes(error)):
            text = " ".join(str(error).split()).removeprefix("backbone: ").rstrip(".: ")
            key = f"{name}." if text.startswith("backbone.") else f"{name}.backbone.architecture: "
            report.problems.append(f"{key}{text}.")
        return None


def _without_hub(backbone: BackboneConfig) -> BackboneConfig:
    """With a text tower and a tokenizer of open_clip's own in place of those that do not lie in a directory here."""
    from open_clip import get_model_config

    config: Mapping[str, Any] = backbone.architecture or {}
    if set(config) == {"model_name"}:
        config = get_model_config(str(config["model_name"])) or config
    text = config.get("text_cfg")
    if not isinstance(text, Mapping) or all(Path(str(text[key])).is_dir() for key in _OF_THE_HUB if key in text):
        return backbone
    own = {key: value for key, value in text.items() if key not in (*_OF_THE_HUB, *_OF_ITS_TOKENIZER)}
    if "hf_model_name" not in text:
        return backbone.model_copy(update={"architecture": {**config, "text_cfg": own}})
    changes: dict[str, Any] = {"architecture": {**config, "text_cfg": own, "custom_text": True}}
    changes["unlocked_groups"] = {tower: n for tower, n in backbone.unlocked_groups.items() if tower == "image"}
    if backbone.lora is not None and backbone.lora.towers != "image":
        changes["lora"] = None
    return backbone.model_copy(update=changes)


def _asks_for_numbers(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError) or _NO_DATA.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
