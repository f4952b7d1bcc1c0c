"""All that is missing is said at once, with the key, the place and the fix; what is there raises nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.data.preflight_project import checked, member, settle_machine, whole_data, write_project
from tests.models.small import SMALL
from xmodal_kedro.config.data import DataConfig, ImagesConfig, Source
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig, TrainConfig
from xmodal_kedro.data.preflight import PreflightError, Report


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settle_machine(monkeypatch, tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


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
