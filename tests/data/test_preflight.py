"""All that is missing is said at once, with the key, the place and the fix; what is there raises nothing."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image
from safetensors.numpy import save_file

from tests.models.small import SMALL
from xmodal_kedro.config.data import Columns, DataConfig, ImagesConfig, Source
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig, TrainConfig
from xmodal_kedro.data.preflight import GIB, PreflightError, Report, check
from xmodal_kedro.data.sizes import Size, Training

IMAGES = ImagesConfig(size=32, workers=1)


def member(weights: str | None) -> MemberConfig:
    backbone = BackboneConfig(name="open_clip", weights=weights) if weights else SMALL["open_clip"]
    return MemberConfig(backbone=backbone, train=TrainConfig(epochs=1, batch_size=2, lr=1e-4))


def checked(project: Path, data: DataConfig | None = None, drawn: Path | None = None, **options: object) -> Report:
    settings = {"images": IMAGES, "members": {}, "runtime": RuntimeConfig(device="cpu"), **options}
    settings.setdefault("trained", list(settings["members"]))
    return check(data, project=project, drawn=drawn, **settings)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with room for everything, and an empty cache."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=512 * GIB))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Data of three formats, and weights in a directory."""
    raw = tmp_path / "project" / "raw"
    (raw / "photos" / "deep").mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    for name in ("a.png", "b.PNG", "deep/c.png", "notes.txt"):
        (raw / "photos" / name).write_bytes(file.getvalue())
    (raw / "train.csv").write_text("image,text\na.png,a\n")
    pq.write_table(pa.table({"jpg": [file.getvalue()] * 7}), raw / "shard-0.parquet")
    (raw / "queries.txt").write_text("who\n")
    weights = tmp_path / "project" / "weights" / "clip"
    weights.mkdir(parents=True)
    save_file({"a": np.zeros((1000, 100), np.float16), "b": np.zeros(24, np.float32)}, weights / "weights.safetensors")
    (weights / "open_clip_config.json").write_text("{}")
    return tmp_path / "project"


def whole_data() -> DataConfig:
    return DataConfig(
        root="raw",
        sources=[
            Source(split="train", format="table", file="train.csv", images="photos"),
            Source(split="val", format="folder", images="photos"),
            Source(split="val", format="parquet", file="shard-*.parquet", columns=Columns(bytes="jpg")),
            Source(split="test", format="queries", file="queries.txt"),
        ],
    )


def test_nothing_is_said_when_nothing_is_missing(project):
    report = checked(project, whole_data(), members={"clip": member("weights/clip"), "small": member(None)})
    assert report.problems == []
    assert report.warnings == []
    report.raise_if_failed()


def test_a_run_that_reads_no_data_needs_none(project):
    assert checked(project, None).problems == []


def test_every_problem_is_in_the_one_error(project):
    (project / "raw/empty.csv").touch()
    (project / "raw/pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (project / "raw/no_photos").mkdir()
    (project / "weights/nothing").mkdir()
    data = DataConfig(
        root="raw",
        sources=[
            Source(split="train", format="table", file="trains.csv", images="photo"),
            Source(split="train", format="table", file="empty.csv", images="no_photos"),
            Source(split="val", format="parquet", file="none-*.parquet"),
            Source(split="val", format="parquet", file="pointer.parquet"),
            Source(split="test", format="queries", file="photos"),
        ],
    )
    members = {"one": member("weights/clap"), "two": member("weights/nothing"), "three": member("./nowhere")}
    report = checked(project, data, members=members, runtime=RuntimeConfig(device="mps"))
    with pytest.raises(PreflightError) as failure:
        report.raise_if_failed()
    message = str(failure.value)
    for expected in (
        f"data.sources[0].file: there is no file {project}/raw/trains.csv (did you mean 'train.csv'?)",
        f"data.sources[0].images: there is no folder {project}/raw/photo (did you mean 'photos'?)",
        "data.sources[1].file: " + f"{project}/raw/empty.csv is empty",
        f"data.sources[1].images: {project}/raw/no_photos holds no images",
        "data.sources[2].file: nothing matches 'none-*.parquet'",
        f"data.sources[3].file: {project}/raw/pointer.parquet is only a Git LFS pointer",
        f"data.sources[4].file: there is no file {project}/raw/photos",
        f"one.backbone.weights: there is no directory {project}/weights/clap (did you mean 'clip'?)",
        f"two.backbone.weights: {project}/weights/nothing holds no open_clip_config.json, and no weights.safetensors",
        "three.backbone.weights: there is no directory",
        "runtime.device: 'mps' is no device",
    ):
        assert expected in message
    assert len(report.problems) == message.count("\n- ") == 11


def test_a_missing_root_is_one_problem(project):
    data = whole_data().model_copy(update={"root": "data/nowhere"})
    (problem,) = checked(project, data).problems
    assert f"data.root: there is no folder {project}/data/nowhere" in problem


@pytest.mark.parametrize("there", [False, True])
def test_what_will_be_drawn_may_be_missing(project, there):
    drawn = project / "data" / "synthetic"
    if there:
        drawn.mkdir(parents=True)
    data = DataConfig(
        root="data/synthetic", sources=[Source(split="train", format="track2", file="a.txt", images="train")]
    )
    assert checked(project, data, drawn).problems == []
    assert checked(project, data, project / "data" / "elsewhere").problems != []


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_id_that_is_not_cached_is_a_problem_only_offline(project, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    report = checked(project, members={"big": member("laion/CLIP-big")})
    said, silent = (report.problems, report.warnings) if offline else (report.warnings, report.problems)
    assert silent == []
    (line,) = said
    assert "big.backbone.weights: 'laion/CLIP-big' is not in the local cache" in line


def test_a_cached_hub_id_is_found_without_network(project, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = Path(constants.HF_HUB_CACHE) / "models--laion--CLIP-big"
    (cached / "snapshots").mkdir(parents=True)
    assert checked(project, members={"big": member("laion/CLIP-big")}).problems
    shutil.copytree(project / "weights/clip", cached / "snapshots/0123")
    report = checked(project, members={"big": member("laion/CLIP-big")})
    assert report == Report()


@pytest.mark.parametrize("weights", ["hf-hub:CLIP-big", "laion/CLIP/big", "weights/CLIP-big"])
def test_what_is_neither_hub_id_nor_directory_is_a_problem(project, weights):
    (problem,) = checked(project, members={"big": member(weights)}).problems
    assert "there is no directory" in problem


def test_the_scheme_of_the_hub_may_be_written(project):
    (warning,) = checked(project, members={"big": member("hf-hub:laion/CLIP-big")}).warnings
    assert "'laion/CLIP-big' is not in the local cache" in warning


def test_a_tag_of_open_clip_is_looked_for_where_it_will_be_loaded_from(project):
    (warning,) = checked(project, members={"big": member("ViT-B-32:laion2b_s34b_b79k")}).warnings
    assert "'laion/CLIP-ViT-B-32-laion2B-s34B-b79K' is not in the local cache" in warning
    (problem,) = checked(project, members={"big": member("ViT-B-32:laion3b")}).problems
    assert "no weights 'laion3b' for a model 'ViT-B-32'" in problem


def test_a_weight_file_needs_its_architecture(project):
    named = {"name": "open_clip", "architecture": {"model_name": "ViT-B-32"}}
    (project / "weights/clip/open_clip_config.json").unlink()
    for weights in ("weights/clip/weights.safetensors", "weights/clip"):
        whole = member(weights).model_copy(update={"backbone": BackboneConfig(weights=weights, **named)})
        assert checked(project, members={"clip": whole}).problems == []
    (problem,) = checked(project, members={"clip": member("weights/clip/weights.safetensors")}).problems
    assert problem.endswith(
        "clip/weights.safetensors is a file. Give the directory of weights and config, or set architecture to "
        "{model_name: ...}."
    )
    (problem,) = checked(project, members={"clip": member("weights/clip")}).problems
    assert "comes without open_clip_config.json" in problem
    other = BackboneConfig(weights="weights/clip", **{**named, "name": "chinese_clip"})
    (problem,) = checked(project, members={"clip": whole.model_copy(update={"backbone": other})}).problems
    assert "reads its architecture from the weights" in problem


@pytest.mark.parametrize(
    ("family", "files", "missing"),
    [
        ("blip", ["model_large.pth"], "weights/new holds no vocab.txt or tokenizer.json"),
        ("chinese_clip", ["config.json", "pytorch_model.bin"], "weights/new holds no vocab.txt or tokenizer.json"),
        ("open_clip", ["config.json", "pytorch_model.bin"], "weights/new comes without open_clip_config.json"),
        ("resnet_roberta", ["image/resnet50.pth"], "weights/new/text holds no config.json, and no vocab.json"),
        (
            "resnet_roberta",
            ["text/config.json", "text/tokenizer.json", "text/model.safetensors"],
            "weights/new/image must hold one file of weights, it has none",
        ),
    ],
)
def test_what_the_family_wants_in_a_directory_is_looked_for(project, family, files, missing):
    folder = project / "weights/new"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": np.zeros(1, np.float32)}, folder / name)
    whole = member(None).model_copy(update={"backbone": BackboneConfig(name=family, weights="weights/new")})
    (problem,) = checked(project, members={"new": whole}).problems
    assert problem.startswith(f"new.backbone.weights: {project}/{missing}")


def test_a_cached_model_that_is_not_whole_is_completed_or_named(project, monkeypatch):
    snapshot = Path(constants.HF_HUB_CACHE) / "models--laion--CLIP-big/snapshots/0123"
    shutil.copytree(project / "weights/clip", snapshot)
    (snapshot / "open_clip_config.json").unlink()
    (warning,) = checked(project, members={"big": member("laion/CLIP-big")}).warnings
    assert "will be downloaded" in warning
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (problem,) = checked(project, members={"big": member("laion/CLIP-big")}).problems
    assert "comes without open_clip_config.json" in problem


@pytest.mark.parametrize(
    ("family", "train", "reason"),
    [
        ("blip", {"micro_batch": 1}, "train.micro_batch is for backbones whose loss needs nothing but features"),
        ("open_clip", {"loss": {"momentum": {}}}, "train.loss.momentum is for backbones with a matching head"),
        ("clip", {}, "backbone.name 'clip' is unknown: there are blip, chinese_clip, open_clip, res2net_gpt, "),
    ],
)
def test_what_a_family_cannot_do_is_said_before_any_member_trains(project, family, train, reason):
    settings = TrainConfig.model_validate({"epochs": 1, "batch_size": 2, "lr": 1e-4, **train})
    backbone = SMALL.get(family, BackboneConfig(name=family, architecture={}))
    last = MemberConfig(backbone=backbone, train=settings)
    (problem,) = checked(project, members={"first": member("weights/clip"), "last": last}).problems
    assert problem.startswith(f"last: {reason}")


@pytest.mark.parametrize(
    ("family", "config", "sizes"),
    [
        ("open_clip", "open_clip_config.json", {"model_cfg": {"vision_cfg": {"image_size": 33}}}),
        ("blip", "config.json", {"vision_config": {"image_size": 33}}),
    ],
)
def test_images_that_are_packed_too_small_are_named(project, family, config, sizes):
    folder = project / "weights/clip"
    (folder / config).write_text(json.dumps(sizes))
    (folder / "vocab.txt").touch()
    whole = member(None).model_copy(update={"backbone": BackboneConfig(name=family, weights="weights/clip")})
    (problem,) = checked(project, members={"big": whole}).problems
    assert "this model wants images of 33 px, images.size is 32" in problem
    assert checked(project, members={"big": whole}, images=ImagesConfig(size=33, workers=1)).problems == []


@pytest.mark.parametrize("weights", ["OFA-Sys/chinese-clip-rn50", "clip_cn_vit-h-14.pt", "ViT-B-32:openai"])
def test_what_chinese_clip_cannot_load_is_a_problem(project, weights):
    config = BackboneConfig(name="chinese_clip", weights=weights)
    (problem,) = checked(project, members={"cn": member(None).model_copy(update={"backbone": config})}).problems
    assert f"cn.backbone.weights: '{weights}' is" in problem


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_weights_that_were_cut_short_are_found(project, keep):
    file = project / "weights/clip/weights.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    (problem,) = checked(project, members={"clip": member("weights/clip")}).problems
    assert f"clip.backbone.weights: {file} is cut short" in problem


def test_a_weight_pointer_is_named(project):
    file = project / "weights/clip/weights.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    (problem,) = checked(project, members={"clip": member("weights/clip")}).problems
    assert "git lfs pull" in problem


def test_disk_counts_each_image_once_and_each_checkpoint(project, monkeypatch):
    # 3 photos in a folder that two sources share, 7 in the shard, of 32 x 32 x 3 bytes; 100 024 parameters in fp32.
    needed = 10 * 3072 + 400_096
    options = {"members": {"clip": member("weights/clip")}, "runtime": RuntimeConfig(device="cpu", resume=False)}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed))
    assert checked(project, whole_data(), **options) == Report()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed - 1))
    (problem,) = checked(project, whole_data(), **options).problems
    assert "disk: 10 packed images and 1 checkpoints" in problem
    store = project / IMAGES.store / "0123"
    store.mkdir(parents=True)
    (store / "MANIFEST.json").touch()
    report = checked(project, whole_data(), **options)
    assert report.problems == []
    assert "disk: " in report.warnings[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=400_095))
    assert "disk: " in checked(project, whole_data(), **options).problems[0]  # the checkpoint itself finds no room
    assert checked(project, whole_data(), trained=[], **options) == Report()  # it is only loaded


def test_disk_has_room_for_the_states_of_all_trainings_and_one_more_or_one_is_warned(project, monkeypatch):
    clip = member("weights/clip")
    last = clip.model_copy(update={"train": clip.train.model_copy(update={"keep": "last"})})
    small = Training("writer", Size(100_024, 50_000), keeps_best=True)
    for trained, captioners, states in [
        (clip, [], 2 * 4 * 400_096),  # weights, two moments, the best weights
        (last, [], 2 * 3 * 400_096),
        (clip, [small], 2 * 4 * 400_096 + 4 * 200_000),
        (last, [Training("writer", Size(100_024, 80_000), keeps_best=True)], 3 * 400_096 + 2 * 4 * 320_000),
    ]:
        kept = 400_096 * (1 + len(captioners))
        options = {"members": {"clip": trained}, "captioners": captioners}
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=kept + states: SimpleNamespace(free=free))
        assert checked(project, **options) == Report()
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=kept + states - 1: SimpleNamespace(free=free))
        report = checked(project, **options)
        assert report.problems == []
        (warning,) = report.warnings
        assert f"disk: 0 packed images and {1 + len(captioners)} checkpoints, and the states of trainings" in warning
        assert warning.endswith("No states are kept with runtime.resume: false.")
        assert checked(project, runtime=RuntimeConfig(device="cpu", resume=False), **options) == Report()
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=kept - 1: SimpleNamespace(free=free))
        assert "and the states of trainings" in checked(project, **options).problems[0]


def test_shards_of_weights_add_up_and_copies_do_not(project, monkeypatch):
    folder = project / "weights/clip"
    for name in ("copy", "model-00001-of-00002", "model-00002-of-00002"):
        shutil.copy(folder / "weights.safetensors", folder / f"{name}.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=800_192))
    assert checked(project, members={"clip": member("weights/clip")}).problems == []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=800_191))
    assert checked(project, members={"clip": member("weights/clip")}).problems != []


def test_memory_is_a_problem_only_when_the_weights_do_not_fit(project, monkeypatch):
    def with_memory(available: int, **options: object) -> Report:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        return checked(project, members={"clip": member("weights/clip")}, **options)

    base = 3 * GIB // 2
    assert with_memory(base + 20 * 100_024) == Report()  # weights, gradients, two moments, the best weights
    little = with_memory(base + 20 * 100_024 - 1)
    assert little.problems == []
    assert "training clip on the CPU" in little.warnings[0]
    assert "memory: the weights of clip" in with_memory(base).problems[0]
    assert with_memory(base + 4 * 100_024, trained=[]) == Report()
    gpu = {"runtime": RuntimeConfig(device="cuda")}
    assert with_memory(base + 8 * 100_024, **gpu).warnings == []  # its memory has all but the best weights
    assert "training clip on the GPU" in with_memory(base + 8 * 100_024 - 1, **gpu).warnings[0]
    larger = {"captioners": [Training("writer", Size(300_000, 100_000), keeps_best=False)]}
    assert with_memory(base + 2_400_000, **larger) == Report()
    assert "training writer on the CPU" in with_memory(base + 2_400_000 - 1, **larger).warnings[0]
    assert "memory: the weights of writer" in with_memory(base + 1_200_000 - 1, **larger).problems[0]
    packing = with_memory(2 * GIB, data=whole_data(), images=ImagesConfig(size=32, workers=8))
    assert "Lower images.workers" in packing.warnings[0]


def test_a_gpu_that_is_not_there_is_named(project, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no GPU" in checked(project, runtime=RuntimeConfig(device="cuda")).problems[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert checked(project, runtime=RuntimeConfig(device="cuda")).problems == []
    assert checked(project, runtime=RuntimeConfig(device="cuda:0")).problems == []
    assert "the last GPU is cuda:0" in checked(project, runtime=RuntimeConfig(device="cuda:1")).problems[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(project):
    project.chmod(0o555)
    try:
        assert any("cannot be written" in problem for problem in checked(project).problems)
    finally:
        project.chmod(0o755)


def test_a_check_without_gpu_imports_no_torch(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from xmodal_kedro.data.preflight import check\n"
        "from xmodal_kedro.config.data import ImagesConfig\n"
        "from xmodal_kedro.config.ensemble import RuntimeConfig\n"
        f"check(None, ImagesConfig(size=8), {{}}, RuntimeConfig(), pathlib.Path({str(tmp_path)!r}), None)\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
