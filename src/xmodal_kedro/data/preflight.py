"""Before the first long node: is everything there that the run will need? All that is missing is said at once.

So is what the family of a member cannot do or build, for that member may be the last one. Nothing is decoded, loaded or
downloaded; a check takes milliseconds, about a second for a model with random weights, a few for huge image folders.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_kedro.config.data import DataConfig, ImagesConfig, Source
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.findings import PreflightError, Report, is_lfs_pointer, nearest
from xmodal_kedro.data.manifest import MANIFEST
from xmodal_kedro.data.paths import IMAGE_SUFFIXES
from xmodal_kedro.data.sizes import NUMBER, Training
from xmodal_kedro.data.weight_checks import check_member

__all__ = ["PreflightError", "Report", "check"]

GIB = 1 << 30
PROCESS_BYTES = 3 * GIB // 2  # Python with torch and the tables of a data set of moderate size
DECODER_BYTES = GIB // 4  # a decoding process with a camera-sized PNG


def check(
    data: DataConfig | None,
    images: ImagesConfig,
    members: Mapping[str, MemberConfig],
    runtime: RuntimeConfig,
    project: Path,
    drawn: Path | None,
    trained: Collection[str] = (),
    captioners: Sequence[Training] = (),
) -> Report:
    """Look for data, weights, disk, memory and device.

    Disk is what the packed images (exact but for files that are no images) and a checkpoint of each training take, and
    the states that trainings are resumed from: one of each until the run ends, and the largest twice, as each epoch
    writes a new one before the old one goes.
    Memory is an estimate: `PROCESS_BYTES`, and the larger of `DECODER_BYTES` for each decoding process and what the
    largest training takes; trainings come one after the other (see `sizes` for what is not counted of them).

    Args:
        data: The data that this run reads; none when it reads none.
        images: How they will be packed.
        members: The members that this run trains or loads, by name.
        runtime: The device that is asked for.
        project: Folder that relative paths start from.
        drawn: Folder that the run itself fills with synthetic data before it reads any; its files may be missing.
        trained: Names of the members that this run trains.
        captioners: That this run trains.

    Returns:
        All problems and warnings.
    """
    report = Report()
    n_images = 0 if data is None else _check_data(data, project, drawn, report)
    sizes = {name: check_member(name, member, images, project, report) for name, member in members.items()}
    trainings = [Training(name, sizes[name], members[name].train.keep == "best") for name in members if name in trained]
    trainings += captioners
    _check_disk(n_images, images, trainings, runtime.resume, project, report)
    loaded = {name: NUMBER * size.parameters for name, size in sizes.items()}
    loaded |= {training.name: training.checkpoint for training in trainings}
    _check_memory(data is not None, images, loaded, trainings, runtime, report)
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
                yield f"{key}.file: there is no file {file}{nearest(file)}. Put it there, or correct the key."
            elif file.stat().st_size == 0:
                yield f"{key}.file: {file} is empty (0 bytes). Copy it again."
            elif is_lfs_pointer(file):
                yield f"{key}.file: {file} is only a Git LFS pointer. Fetch the content with: git lfs pull"
    if source.images is not None:
        folder = root / source.images
        if not folder.is_dir():
            yield f"{key}.images: there is no folder {folder}{nearest(folder)}. Put the images there."
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


def _check_disk(
    n_images: int, images: ImagesConfig, trainings: Sequence[Training], resume: bool, project: Path, report: Report
) -> None:
    stores, models = project / images.store, project / "data"
    pixels = n_images * images.size**2 * 3
    checkpoints = sum(training.checkpoint for training in trainings)
    each = [training.state for training in trainings]  # all stay until the run ends, the one being written twice
    states = sum(each) + max(each, default=0) if resume else 0
    # Where images have been packed before, the store may be used again; a training does without a state.
    packed = any(stores.glob(f"*/{MANIFEST}"))
    needed: Counter[Path] = Counter()
    sure: Counter[Path] = Counter()
    for place, amount, least in (
        (stores, pixels, 0 if packed else pixels),
        (models, checkpoints + states, checkpoints),
    ):
        existing = _nearest_existing(place)
        if not os.access(existing, os.W_OK):
            report.problems.append(f"{place} cannot be written: {existing} is read-only for this user.")
        # Places on one disk need it together.
        same = next((other for other in needed if other.stat().st_dev == existing.stat().st_dev), existing)
        needed[same] += amount
        sure[same] += least
    what, cure = f"{n_images} packed images and {len(trainings)} checkpoints", "Make room, or lower images.size."
    if states:
        what += ", and the states of trainings that an interrupted run goes on from,"
        cure += " No states are kept with runtime.resume: false."
    for place, amount in needed.items():
        free = shutil.disk_usage(place).free
        if amount > free:
            text = f"disk: {what} take about {_gib(amount)}, {place} has {_gib(free)} free. {cure}"
            (report.problems if sure[place] > free else report.warnings).append(text)


def _check_memory(
    packs: bool,
    images: ImagesConfig,
    loaded: Mapping[str, int],
    trainings: Sequence[Training],
    runtime: RuntimeConfig,
    report: Report,
) -> None:
    available, on_gpu = psutil.virtual_memory().available, runtime.device.startswith("cuda")
    decoding = (images.workers or os.cpu_count() or 1) * DECODER_BYTES if packs else 0
    largest = max(loaded, key=lambda name: loaded[name], default="")
    weights = loaded.get(largest, 0)
    least = PROCESS_BYTES + weights
    longest = max(trainings, key=lambda training: training.memory(on_gpu=on_gpu), default=None)
    most = max(least, PROCESS_BYTES + longest.memory(on_gpu=on_gpu) if longest else 0)
    there = f"{_gib(available)} of memory are available"
    if weights and least > available:
        report.problems.append(
            f"memory: the weights of {largest} alone take {_gib(least)} with Python around them, and {there}. Close "
            "other programs, or take a smaller backbone."
        )
    elif most > available:
        whom = f"training {longest.name} on the {'GPU' if on_gpu else 'CPU'} takes" if longest else "a run takes"
        report.warnings.append(f"memory: {whom} about {_gib(most)}, and {there}.")
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


def _nearest_existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.absolute().parents) if parent.exists())


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"
