"""Before the first node: are the weights there that members and captioners begin with, and can their families use them?

Nothing is loaded or downloaded; of weights only headers are read. Members without weights are built, of shapes alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig
from xmodal_kedro.config.weights import WeightsSource, unsupported, weights_source
from xmodal_kedro.data.architecture_checks import check_architecture
from xmodal_kedro.data.findings import Report, is_lfs_pointer, nearest
from xmodal_kedro.data.sizes import Size

if TYPE_CHECKING:
    from xmodal_kedro.models.backbone import Backbone
    from xmodal_kedro.models.weights import Published

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_SHARD = re.compile(r"-\d+-of-\d+")


def check_member(name: str, member: MemberConfig, images: ImagesConfig, project: Path, report: Report) -> Size:
    """Look for what a member begins with, and for what its family cannot do.

    Returns:
        How many parameters the weights hold, or the model that its architecture describes; zeros where that is unknown.
    """
    from xmodal_kedro.models import family

    try:
        kind = family(member.backbone.name)
    except ValueError as error:
        report.problems.append(f"{name}: {error}.")
        return Size()
    if reason := kind.refusal(member.train):
        report.problems.append(f"{name}: {reason}.")
    said = False
    for section in ((), ("vision_cfg",), ("vision_config",)):  # where families say it
        key = ".".join((f"{name}.backbone.architecture", *section, "image_size"))
        said |= _check_image_size(key, member.backbone.architecture, section, images, report)
    if member.backbone.weights is not None:
        parameters = _check_weights(name, member, kind, member.backbone.weights, images, project, report)
        return Size(parameters, parameters)
    refused = set()
    for part, files in kind.architecture_files.items():
        named_file = (member.backbone.architecture or {}).get(part)
        if isinstance(named_file, str):
            before = len(report.problems)
            _check_named(f"{name}.backbone.architecture.{part}", named_file, files, project, report)
            if len(report.problems) > before:
                refused.add(part)
    model = check_architecture(name, member.backbone, project, refused, report)
    if model is None:
        return Size()
    if not said:
        _check_image_size(f"{name}.backbone.architecture", {"image_size": model.image_size}, (), images, report)
    return Size.of(model)


def _check_weights(
    name: str,
    member: MemberConfig,
    kind: type[Backbone],
    weights: str,
    images: ImagesConfig,
    project: Path,
    report: Report,
) -> int:
    """Returns how many parameters they hold."""
    key = f"{name}.backbone.weights"
    family, named = member.backbone.name, member.backbone.architecture is not None
    if reason := unsupported(family, weights):
        report.problems.append(f"{key}: {reason}.")
        return 0
    if named and family != "open_clip":
        report.problems.append(f"{key}: {family} reads its architecture from the weights. Set architecture to null.")
        return 0
    source = weights_source(weights, project)
    if source.kind == "directory":
        if not named:
            parts = ("model_cfg", "vision_cfg") if family == "open_clip" else ("vision_config",)
            _check_image_size(key, _json(source.path / kind.library_files[0][0]), parts, images, report)
        return _check_weight_files(key, source.path, None if named else kind, report)
    if source.kind == "file" and named:
        return _check_parameters(key, [source.path], report)
    if source.kind == "hub":
        return _check_hub(key, source.hub_id, kind, report)
    if source.kind == "tag":
        return _check_tag(key, source, report)
    if source.kind == "file":
        named_too = ", or set architecture to {model_name: ...}" if family == "open_clip" else ""
        report.problems.append(f"{key}: {source.path} is a file. Give the directory of weights and config{named_too}.")
    else:
        report.problems.append(
            f"{key}: there is no directory {source.path}{nearest(source.path)}. Put the weights with their config "
            "there, or correct the key."
        )
    return 0


def check_captioners(
    captioners: Mapping[str, CaptionerConfig],
    members: Mapping[str, MemberConfig],
    images: ImagesConfig,
    project: Path,
    captioning: CaptioningConfig,
) -> Report:
    """Look for what captioners begin with, and whether they can write captions as long as those that are asked for.

    Args:
        captioners: Those whose parameters the run reads, by name.
        members: Of the recipe, by name.
        images: How images are packed.
        project: Folder that relative paths start from.
        captioning: How captions are decoded.
    """
    from xmodal_kedro.models import family, writers

    report = Report()
    for name, captioner in captioners.items():
        if captioner.weights is not None:
            from xmodal_kedro.captioning.transformers_captioner import TransformersCaptioner

            key, config = f"{name}.weights", _json(weights_source(captioner.weights, project).path / "config.json")
            _check_named(key, captioner.weights, TransformersCaptioner, project, report)
            for section in ("vision_config", "encoder"):
                _check_image_size(key, config, [section], images, report)
        elif captioner.member is not None:
            backbone = members[captioner.member].backbone.name
            try:
                writes = family(backbone).writes
            except ValueError as error:
                report.problems.append(f"{captioner.member}: {error}.")
                continue
            if not writes:
                report.problems.append(
                    f"{name}.member: '{captioner.member}' has a backbone '{backbone}', which does not write captions. "
                    f"Name a member with one that does: {', '.join(writers())}."
                )
                continue
            _check_steps(captioner.member, members[captioner.member].backbone, captioning, report)
    return report


def _check_steps(member: str, backbone: BackboneConfig, captioning: CaptioningConfig, report: Report) -> None:
    """The start of a caption takes a position of the GPT, and its end takes none."""
    from xmodal_kedro.models.gpt import GPTSizes

    positions = GPTSizes.model_fields["block_size"].default
    sizes = (backbone.architecture or {}).get("text_config")
    if isinstance(sizes, dict):
        positions = sizes.get("block_size", positions)
    steps = captioning.decoding.max_steps
    # Weights have their own sizes, which opening them tells; what is no size, building the model tells.
    if backbone.weights is None and isinstance(positions, int) and steps > positions:
        report.problems.append(
            f"captioning.decoding.max_steps: it is {steps}, and the GPT of '{member}' has {positions} positions. Lower "
            f"it to {positions}, or raise {member}.backbone.architecture.text_config.block_size."
        )


def _check_named(key: str, named: str, kind: type[Published] | None, project: Path, report: Report) -> None:
    """A path or hub id of published weights or, without a kind, the path of any one file."""
    source = weights_source(named, project)
    path = source.path
    if kind is None:
        if source.kind == "directory":
            report.problems.append(f"{key}: {path} is a directory, and one file is wanted. Correct the key.")
        elif source.kind != "file":
            report.problems.append(f"{key}: there is no file {path}{nearest(path)}. Put it there, or correct the key.")
    elif kind.is_file(path):
        _check_parameters(key, [path], report)
    elif source.kind == "directory":
        _check_weight_files(key, path, kind, report)
    elif source.kind == "hub":
        _check_hub(key, source.hub_id, kind, report)
    elif source.kind == "file":
        report.problems.append(f"{key}: {path} is a file. Give its directory, with: {kind.wanted()}.")
    else:
        report.problems.append(
            f"{key}: there is no directory {path}{nearest(path)}. Put there: {kind.wanted()}. Or correct the key."
        )


def _json(file: Path) -> Any:
    """What a config says; None where it cannot be read, which opening the weights will explain."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _check_image_size(key: str, config: Any, parts: Sequence[str], images: ImagesConfig, report: Report) -> bool:
    """Whether a config says the size in its section, where alone it is checked."""
    found = config
    try:
        for part in (*parts, "image_size"):
            found = found[part]
    except (KeyError, TypeError):
        return False
    if isinstance(found, int) and found > images.size:
        report.problems.append(
            f"{key}: this model wants images of {found} px, images.size is {images.size}, and images are not scaled "
            f"up. Set images.size to at least {found}."
        )
    return True


def _check_tag(key: str, source: WeightsSource, report: Report) -> int:
    from open_clip import get_pretrained_cfg

    published = get_pretrained_cfg(source.model, source.tag)
    if not published:
        report.problems.append(f"{key}: open_clip has no weights '{source.tag}' for a model '{source.model}'.")
        return 0
    return _check_hub(key, published["hf_hub"].strip("/"), None, report)


def _check_hub(key: str, hub_id: str, kind: type[Published] | None, report: Report) -> int:
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    for snapshot in sorted(cached.glob("snapshots/*")):
        holds_weights = any(file.suffix in _WEIGHT_SUFFIXES and file.exists() for file in snapshot.rglob("*"))
        # Online, what a cached model lacks is fetched.
        if holds_weights and (constants.HF_HUB_OFFLINE or kind is None or not kind.missing_files(snapshot)):
            return _check_weight_files(key, snapshot, kind, report)
    if constants.HF_HUB_OFFLINE:
        report.problems.append(
            f"{key}: '{hub_id}' is not in the local cache ({cached}), and HF_HUB_OFFLINE forbids to fetch it. Copy the "
            "model into a directory and name that, or unset HF_HUB_OFFLINE."
        )
    else:
        report.warnings.append(f"{key}: '{hub_id}' is not in the local cache, so it will be downloaded ({cached}).")
    return 0


def _check_weight_files(key: str, directory: Path, kind: type[Published] | None, report: Report) -> int:
    """Without a family, the architecture is known without a config: weights are enough."""
    files = [file for file in sorted(directory.rglob("*")) if file.suffix in _WEIGHT_SUFFIXES and file.is_file()]
    missing = kind.missing_files(directory) if kind else None
    if missing:
        report.problems.append(f"{key}: {missing}.")
    elif not files:
        names = ", ".join(f"*{suffix}" for suffix in _WEIGHT_SUFFIXES)
        report.problems.append(f"{key}: {directory} holds no weights ({names}). Put them there.")
    return _check_parameters(key, files, report)


def _check_parameters(key: str, files: Iterable[Path], report: Report) -> int:
    counts: Counter[str] = Counter()
    for file in files:
        if is_lfs_pointer(file):
            report.problems.append(f"{key}: {file} is only a Git LFS pointer. Fetch the weights with: git lfs pull")
        elif file.suffix == ".safetensors":
            try:
                # A model in several shards adds up; the same model under several names does not.
                counts[_SHARD.sub("", file.name)] += _count_parameters(file)
            except SafetensorError:
                report.problems.append(f"{key}: {file} is cut short or no safetensors file. Copy it again.")
    return max(counts.values(), default=0)


def _count_parameters(file: Path) -> int:
    """Parameters of a safetensors file; only its header is read, which also tells whether the file is whole."""
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
