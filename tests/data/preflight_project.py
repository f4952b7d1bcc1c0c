"""A project whose data and weights are all there, on a machine with room for everything."""

import io
import shutil
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
from xmodal_kedro.data.preflight import GIB, Report, check

IMAGES = ImagesConfig(size=32, workers=1)


def member(weights: str | None) -> MemberConfig:
    backbone = BackboneConfig(name="open_clip", weights=weights) if weights else SMALL["open_clip"]
    return MemberConfig(backbone=backbone, train=TrainConfig(epochs=1, batch_size=2, lr=1e-4))


def checked(project: Path, data: DataConfig | None = None, drawn: Path | None = None, **options: object) -> Report:
    settings = {"images": IMAGES, "members": {}, "runtime": RuntimeConfig(device="cpu"), **options}
    settings.setdefault("trained", list(settings["members"]))
    return check(data, project=project, drawn=drawn, **settings)


def settle_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with room for everything, and an empty cache."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=512 * GIB))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def write_project(tmp_path: Path) -> Path:
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
