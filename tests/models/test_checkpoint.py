"""A checkpoint directory alone is enough: another process encodes the same, to the bit."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone, small_member
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build
from xmodal_kedro.models.checkpoint import read_checkpoint, write_checkpoint
from xmodal_kedro.retrieval.embed import embed_images, embed_texts

METRICS = {"map_at_10": 0.25, "r1": 0.125}
NAMES = sorted(SMALL)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE + 8, SIZE + 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every small backbone, each with weights that its seed alone would not give."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        backbone = small_backbone(name)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        write_checkpoint(folder / name, backbone, small_member(name), METRICS, {"data": "d" * 64})
        np.save(folder / f"{name}.images.npy", embed_images(backbone, pixels()))
        np.save(folder / f"{name}.texts.npy", embed_texts(backbone, TEXTS))
    return folder


def test_another_process_encodes_the_same_to_the_bit(checkpoints: Path) -> None:
    script = f"""
import socket, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
socket.getaddrinfo = socket.socket.connect = None
from xmodal_kedro.models.checkpoint import read_checkpoint
from xmodal_kedro.retrieval.embed import embed_images, embed_texts
pixels = np.random.default_rng(0).integers(0, 256, (5, {SIZE + 8}, {SIZE + 8}, 3), dtype=np.uint8)
for name in {NAMES!r}:
    backbone = read_checkpoint(Path(name)).backbone
    assert np.array_equal(embed_images(backbone, pixels), np.load(name + ".images.npy")), name
    assert np.array_equal(embed_texts(backbone, {TEXTS!r}), np.load(name + ".texts.npy")), name
print("the same")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=checkpoints, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "the same", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_was_written_is_read(checkpoints: Path, name: str) -> None:
    checkpoint = read_checkpoint(checkpoints / name)
    assert checkpoint.member == small_member(name)
    assert checkpoint.metrics == METRICS
    assert checkpoint.fingerprints["data"] == "d" * 64
    assert {len(value) for value in checkpoint.fingerprints.values()} == {64}
    assert not checkpoint.backbone.training


@pytest.mark.parametrize("name", NAMES)
def test_a_member_can_start_from_a_checkpoint(checkpoints: Path, name: str) -> None:
    config = SMALL[name].model_copy(update={"architecture": None, "weights": str(checkpoints / name)})
    backbone = build(config).eval()
    assert np.array_equal(embed_texts(backbone, TEXTS), np.load(checkpoints / f"{name}.texts.npy"))


def test_the_files_are_those_of_the_contract(checkpoints: Path) -> None:
    for name in NAMES:
        files = {path.name for path in (checkpoints / name).iterdir()}
        assert {"weights.safetensors", "member.yaml", "metrics.json", "MANIFEST.json"} <= files
        assert [file for file in files if file.endswith((".safetensors", ".bin", ".pt", ".pkl"))] == [
            "weights.safetensors"
        ]
        assert yaml.safe_load((checkpoints / name / "member.yaml").read_text())["backbone"]["name"] in name
        manifest = json.loads((checkpoints / name / "MANIFEST.json").read_text())
        assert set(manifest["files"]) == files - {"MANIFEST.json"}
        with safe_open(checkpoints / name / "weights.safetensors", "pt") as tensors:
            assert "logit_scale" in set(tensors.keys())  # the library's names, not a wrapper's


def test_fingerprints_tell_apart_weights_and_preprocessing(tmp_path: Path) -> None:
    def written(folder: str, name: str, seed: int) -> dict[str, str]:
        return write_checkpoint(tmp_path / folder, small_backbone(name, seed), small_member(name), {}, {})

    first, same, other = written("a", "open_clip", 0), written("b", "open_clip", 0), written("c", "open_clip", 1)
    assert first == same
    assert first["weights"] != other["weights"]
    assert first["transform"] == other["transform"]
    assert first["transform"] != written("d", "open_clip_resnet", 0)["transform"]


def test_a_directory_that_is_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("here")
    with pytest.raises(FileExistsError, match=f"{tmp_path} is not empty"):
        write_checkpoint(tmp_path, small_backbone("open_clip"), small_member(), {}, {})


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints / "open_clip", tmp_path / "copy")


def test_without_a_manifest_there_is_no_checkpoint(copy: Path) -> None:
    (copy / "MANIFEST.json").unlink()
    with pytest.raises(BrokenArtifactError, match="has no MANIFEST"):
        read_checkpoint(copy)


def test_files_that_are_cut_short_are_found(copy: Path) -> None:
    weights = copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BrokenArtifactError, match=r"weights.safetensors is missing or cut short"):
        read_checkpoint(copy)


def test_a_pickle_in_place_of_the_weights_is_not_opened(copy: Path) -> None:
    size = (copy / "weights.safetensors").stat().st_size
    evil = pickle.dumps(_Evil())
    (copy / "weights.safetensors").write_bytes(evil + b"\0" * (size - len(evil)))
    with pytest.raises(BrokenArtifactError, match=r"weights.safetensors holds no tensors.*run the node again"):
        read_checkpoint(copy)


def test_weights_of_another_architecture_are_refused(copy: Path, checkpoints: Path) -> None:
    shutil.copy(checkpoints / "open_clip_resnet" / "weights.safetensors", copy)
    manifest = json.loads((copy / "MANIFEST.json").read_text())
    manifest["files"]["weights.safetensors"]["bytes"] = (copy / "weights.safetensors").stat().st_size
    (copy / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BrokenArtifactError, match=r"weights.safetensors does not fit .* tensors are missing.*such as visual.attnpool"
    ):
        read_checkpoint(copy)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was run",)
