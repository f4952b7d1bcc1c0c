"""Disk, memory and device that a run will need, or one clear line about what it lacks."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.data.preflight_project import IMAGES, checked, member, settle_machine, whole_data, write_project
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.data.preflight import GIB, Report
from xmodal_kedro.data.sizes import Size, Training


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settle_machine(monkeypatch, tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


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
