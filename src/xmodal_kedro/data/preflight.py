"""Before the first long node: is everything there that the run will need? All that is missing is said at once.

So is what the family of a member cannot do, for that member may be the last one to be built. Nothing is decoded, loaded
or downloaded; a check takes milliseconds to a few seconds for huge image folders.
"""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from xmodal_kedro.config.data import DataConfig, ImagesConfig, Source
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.config.weights import WeightsSource, unsupported, weights_source
from xmodal_kedro.data.manifest import MANIFEST
from xmodal_kedro.data.paths import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from xmodal_kedro.models.backbone import Backbone

GIB = 1 << 30
PROCESS_BYTES = 3 * GIB // 2  # Python with torch and the tables of a data set of moderate size
DECODER_BYTES = GIB // 4  # a decoding process with a camera-sized PNG
TRAINED_BYTES = 16  # per parameter, fp32: weights, gradients and the two moments of AdamW
LOADED_BYTES = 4

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_LFS = b"version https://git-lfs"
_SHARD = re.compile(r"-\d+-of-\d+")


class PreflightError(RuntimeError):
    """The run cannot succeed; the message lists all that is missing, and what to put where."""


@dataclass
class Report:
    """What a check found: problems end the run, warnings do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Do nothing if there are no problems.

        Raises:
            PreflightError: One error with every problem.
        """
        if self.problems:
            lines = "\n".join(f"- {problem}" for problem in self.problems)
            raise PreflightError(f"this run cannot succeed yet:\n{lines}")


def check(
    data: DataConfig | None,
    images: ImagesConfig,
    members: Mapping[str, MemberConfig],
    runtime: RuntimeConfig,
    project: Path,
    drawn: Path | None,
) -> Report:
    """Look for data, weights, disk, memory and device.

    Disk is what the packed images (exact but for files that are no images) and one checkpoint of each member with
    pretrained weights take. Memory is an estimate: `PROCESS_BYTES`, and the larger of `DECODER_BYTES` for each decoding
    process and, for the largest member, `TRAINED_BYTES` (`LOADED_BYTES` when it trains on a GPU) for each parameter.
    Activations, and models with random weights, are not counted.

    Args:
        data: The data that this run reads; none when it reads none.
        images: How they will be packed.
        members: The members that this run trains or loads, by name.
        runtime: The device that is asked for.
        project: Folder that relative paths start from.
        drawn: Folder that the run itself fills with synthetic data before it reads any; its files may be missing.

    Returns:
        All problems and warnings.
    """
    report = Report()
    n_images = 0 if data is None else _check_data(data, project, drawn, report)
    parameters = {name: _check_member(name, member, images, project, report) for name, member in members.items()}
    _check_disk(n_images, images, parameters, project, report)
    _check_memory(data is not None, images, parameters, runtime, report)
    _check_device(runtime.device, report)
    return report


def _check_data(data: DataConfig, project: Path, drawn: Path | None, report: Report) -> int:
    """Returns how many images there are at most, as far as that is cheap to know."""
    root = project / data.root
    will_be_drawn = drawn is not None and root.resolve().is_relative_to(drawn.resolve())
    if not root.is_dir():
        if not will_be_drawn:
            report.problems.append(f"data.root: there is no folder {root}. Put the data there, or correct the key.")
        return 0
    counts: dict[str, int] = {}
    for number, source in enumerate(data.sources):
        problems = list(_source_problems(f"data.sources[{number}]", source, root))
        if problems and not will_be_drawn:
            report.problems += problems
        elif not problems:
            counts |= _image_counts(source, root)
    return sum(counts.values())


def _source_problems(key: str, source: Source, root: Path) -> Iterator[str]:
    if source.file is not None:
        files = [root / source.file]
        if source.format == "parquet":
            files = [root / name for name in glob.glob(source.file, root_dir=root, recursive=True)]
            if not files:
                yield f"{key}.file: nothing matches '{source.file}' under {root}. Put the shards there."
        for file in files:
            if not file.is_file():
                yield f"{key}.file: there is no file {file}{_nearest(file)}. Put it there, or correct the key."
            elif file.stat().st_size == 0:
                yield f"{key}.file: {file} is empty (0 bytes). Copy it again."
            elif _is_lfs_pointer(file):
                yield f"{key}.file: {file} is only a Git LFS pointer. Fetch the content with: git lfs pull"
    if source.images is not None:
        folder = root / source.images
        if not folder.is_dir():
            yield f"{key}.images: there is no folder {folder}{_nearest(folder)}. Put the images there."
        elif next(_images_below(folder), None) is None:
            yield f"{key}.images: {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}). Put them there."


def _image_counts(source: Source, root: Path) -> dict[str, int]:
    """Images by where they lie, so that a folder which several sources share is counted once."""
    if source.images is not None:
        return {source.images: sum(1 for _ in _images_below(root / source.images))}
    if source.format == "parquet" and source.columns.bytes is not None:
        return {shard: _rows(root / shard) for shard in glob.glob(str(source.file), root_dir=root, recursive=True)}
    return {}


def _images_below(folder: Path) -> Iterator[str]:
    for _, _, files in os.walk(folder):
        yield from (name for name in files if name.lower().endswith(IMAGE_SUFFIXES))


def _rows(shard: Path) -> int:
    try:
        return pq.read_metadata(shard).num_rows
    except (pa.ArrowException, OSError):  # the reader will name it
        return 0


def _check_member(name: str, member: MemberConfig, images: ImagesConfig, project: Path, report: Report) -> int:
    """Returns how many parameters the weights hold; 0 where that is unknown."""
    from xmodal_kedro.models import family

    try:
        kind = family(member.backbone.name)
    except ValueError as error:
        report.problems.append(f"{name}: {error}.")
        return 0
    if reason := kind.refusal(member.train):
        report.problems.append(f"{name}: {reason}.")
    return _check_weights(name, member, kind, images, project, report)


def _check_weights(
    name: str, member: MemberConfig, kind: type[Backbone], images: ImagesConfig, project: Path, report: Report
) -> int:
    weights = member.backbone.weights
    if weights is None:
        return 0
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
            _check_image_size(key, source.path, kind, images, report)
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
            f"{key}: there is no directory {source.path}{_nearest(source.path)}. Put the weights with their config "
            "there, or correct the key."
        )
    return 0


def _check_image_size(key: str, directory: Path, kind: type[Backbone], images: ImagesConfig, report: Report) -> None:
    """Only where a config says the size: what it does not say, building the model does."""
    keys = ("model_cfg", "vision_cfg") if kind.name == "open_clip" else ("vision_config",)
    try:
        found: Any = json.loads((directory / kind.library_files[0][0]).read_text(encoding="utf-8"))
        for part in (*keys, "image_size"):
            found = found[part]
    except (OSError, KeyError, TypeError, ValueError):
        return
    if isinstance(found, int) and found > images.size:
        report.problems.append(
            f"{key}: this model wants images of {found} px, images.size is {images.size}, and images are not scaled "
            f"up. Set images.size to at least {found}."
        )


def _check_tag(key: str, source: WeightsSource, report: Report) -> int:
    from open_clip import get_pretrained_cfg

    published = get_pretrained_cfg(source.model, source.tag)
    if not published:
        report.problems.append(f"{key}: open_clip has no weights '{source.tag}' for a model '{source.model}'.")
        return 0
    return _check_hub(key, published["hf_hub"].strip("/"), None, report)


def _check_hub(key: str, hub_id: str, kind: type[Backbone] | None, report: Report) -> int:
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


def _check_weight_files(key: str, directory: Path, kind: type[Backbone] | None, report: Report) -> int:
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
        if _is_lfs_pointer(file):
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


def _check_disk(
    n_images: int, images: ImagesConfig, parameters: Mapping[str, int], project: Path, report: Report
) -> None:
    stores = project / images.store
    models = project / "data"
    needed: dict[Path, int] = {}
    for place, amount in (
        (stores, n_images * images.size**2 * 3),
        (models, sum(parameters.values()) * LOADED_BYTES),
    ):
        existing = _nearest_existing(place)
        if not os.access(existing, os.W_OK):
            report.problems.append(f"{place} cannot be written: {existing} is read-only for this user.")
        # Places on one disk need it together.
        same = next((other for other in needed if other.stat().st_dev == existing.stat().st_dev), existing)
        needed[same] = needed.get(same, 0) + amount
    for place, amount in needed.items():
        free = shutil.disk_usage(place).free
        if amount > free:
            what = (
                f"disk: {n_images} packed images and {len(parameters)} checkpoints take about {_gib(amount)}, {place} "
                f"has {_gib(free)} free. Make room, or lower images.size."
            )
            # Where images have been packed before, the store may be used again.
            packed = any(stores.glob(f"*/{MANIFEST}"))
            (report.warnings if packed else report.problems).append(what)


def _check_memory(
    packs: bool, images: ImagesConfig, parameters: Mapping[str, int], runtime: RuntimeConfig, report: Report
) -> None:
    available = psutil.virtual_memory().available
    decoding = (images.workers or os.cpu_count() or 1) * DECODER_BYTES if packs else 0
    largest = max(parameters, key=lambda name: parameters[name], default=None)
    count = parameters[largest] if largest is not None else 0
    least = PROCESS_BYTES + count * LOADED_BYTES
    trained = PROCESS_BYTES + count * (LOADED_BYTES if runtime.device.startswith("cuda") else TRAINED_BYTES)
    there = f"{_gib(available)} of memory are available"
    if count and least > available:
        report.problems.append(
            f"memory: the weights of {largest} alone take {_gib(least)} with Python around them, and {there}. Close "
            "other programs, or take a smaller backbone."
        )
    elif trained > available:
        whom = f"training {largest} on the CPU takes about {_gib(trained)}" if count else f"a run takes {_gib(trained)}"
        report.warnings.append(f"memory: {whom}, and {there}.")
    if PROCESS_BYTES + decoding > available:
        report.warnings.append(
            f"memory: packing images takes about {_gib(PROCESS_BYTES + decoding)}, and {there}. Lower images.workers."
        )


def _check_device(device: str, report: Report) -> None:
    if device in ("auto", "cpu"):
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        report.problems.append(f"runtime.device: '{device}' is no device. Set it to auto, cpu, cuda or cuda:N.")
        return
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there == 0:
        report.problems.append(
            f"runtime.device: '{device}' is asked for, and torch sees no GPU. Set it to auto or cpu."
        )
    elif int(device.partition(":")[2] or 0) >= there:
        report.problems.append(f"runtime.device: there is no '{device}', the last GPU is cuda:{there - 1}.")


def _nearest(path: Path) -> str:
    """A name beside a missing one that it may be a slip of."""
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _nearest_existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.absolute().parents) if parent.exists())


def _is_lfs_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_LFS)) == _LFS


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"
