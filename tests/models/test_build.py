"""Finding and building backbones: one clear error for each thing that may be missing or misspelt."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build, family
from xmodal_kedro.models.backbone import ArchitectureError
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.weights import MissingWeightsError, find_weights

# --- choice and freezing


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backbone.name 'clip' is unknown: there are blip, chinese_clip, open_clip"):
        build(BackboneConfig(name="clip", architecture={}))


@pytest.mark.parametrize("name", ["transform", "open_clip_files"])
def test_modules_beside_the_backbones_are_no_backbones(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is unknown"):
        family(name)


@pytest.mark.parametrize("given", [{}, {"weights": "somewhere", "architecture": {}}])
def test_exactly_one_of_weights_and_architecture_is_wanted(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either weights .* or architecture"):
        build(BackboneConfig(name="chinese_clip", **given))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_context_may_be_shorter_than_the_model_allows_and_not_longer(name: str) -> None:
    backbone = build(SMALL[name].model_copy(update={"context": 8}), texts=TEXTS).eval()
    tokens = backbone.tokenize(["word " * 100, "word"])
    assert tokens["attention_mask"].sum(1).max() <= 8
    assert backbone.encode_text(tokens).shape == (2, backbone.embed_dim)
    with pytest.raises(ValueError, match=r"backbone.context is 1000: this model allows \d+ tokens at most"):
        build(SMALL[name].model_copy(update={"context": 1000}), texts=TEXTS)


def test_build_freezes_as_the_config_says() -> None:
    config = SMALL["open_clip"].model_copy(update={"unlocked_groups": {"image": 1, "text": 0}})
    backbone = build(config)
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(backbone.logit_scale), *map(id, backbone.layer_groups("image")[-1])}


def test_frozen_parts_stay_in_eval_and_the_rest_does_not() -> None:
    backbone = small_backbone("open_clip_resnet")
    backbone.freeze({"image": 2})
    backbone.train()
    frozen = {id(p) for group in backbone.layer_groups("image")[:-2] for p in group}
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {True, False}
    for norm in norms:
        assert norm.training is (id(norm.weight) not in frozen)
    backbone.eval()
    assert not any(module.training for module in backbone.modules())


# --- weights


@pytest.mark.parametrize(
    ("name", "file"), [("open_clip", "open_clip_config.json"), ("chinese_clip", "vocab.txt or tokenizer.json")]
)
def test_a_directory_without_the_files_names_them(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeightsError, match=f"{tmp_path} holds no {file}"):
        build(BackboneConfig(name=name, weights=str(tmp_path)))


def test_a_directory_without_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    backbone = small_backbone("open_clip")
    backbone.save_settings(tmp_path)
    with pytest.raises(MissingWeightsError, match=r"holds no weights.safetensors or open_clip_model.safetensors"):
        build(BackboneConfig(name="open_clip", weights=str(tmp_path)))


@pytest.mark.parametrize("weights", ["/nowhere/at/all", "nowhere/at/all", "./nowhere", "tests/nowhere"])
def test_a_directory_that_does_not_exist_is_not_looked_for_on_the_hub(weights: str) -> None:
    with pytest.raises(MissingWeightsError, match=r"there is no directory /.*Wanted: config.json"):
        build(BackboneConfig(name="chinese_clip", weights=weights))


def test_a_hub_id_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingWeightsError, match=r"'owner/model' is no directory.*Set backbone.weights to a directory"
    ):
        build(BackboneConfig(name="open_clip", weights="owner/model"))


HUB = [
    *("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "config.json"),
    *("vocab.txt", "tokenizer.json", "README.md", "tf_model.h5", "pytorch_model.bin", "flax_model.msgpack"),
]


class FakeHub:
    """A hub with one model of these files, and its cache."""

    def __init__(self, cache: Path, files: dict[str, str], *, reached: bool = True) -> None:
        self.cache, self.files, self.reached = cache, files, reached

    def list_repo_files(self, hub_id: str) -> list[str]:
        if not self.reached:
            raise OfflineModeIsEnabled("offline")
        return list(self.files)

    def snapshot_download(self, hub_id: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only != (not self.reached):
            raise AssertionError("the cache alone is for a hub that cannot be reached")
        if local_files_only and not self.cache.is_dir():
            raise LocalEntryNotFoundError("not cached")
        for name, content in self.files.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.cache.mkdir(exist_ok=True)
                (self.cache / name).write_text(content)
        return str(self.cache)


def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, files: dict[str, str], *, reached: bool = True) -> None:
    fake = FakeHub(cache, files, reached=reached)
    monkeypatch.setattr("xmodal_kedro.models.weights.list_repo_files", fake.list_repo_files)
    monkeypatch.setattr("xmodal_kedro.models.weights.snapshot_download", fake.snapshot_download)


@pytest.mark.parametrize(
    ("name", "extra", "fetched"),
    [
        ("open_clip", [], {"open_clip_model.safetensors"}),
        ("chinese_clip", [], {"pytorch_model.bin"}),
        ("chinese_clip", ["model.safetensors"], {"model.safetensors"}),
        ("blip", ["model.safetensors", "model_large.pth"], {"model.safetensors"}),
    ],
)
def test_one_format_is_fetched_from_the_hub(
    name: str, extra: list[str], fetched: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, tmp_path / "cache", dict.fromkeys([*HUB, *extra], "{}"))
    directory = find_weights("owner/model", family(name))
    settings = {"open_clip_config.json", "config.json", "vocab.txt", "tokenizer.json"}
    assert {file.name for file in directory.iterdir()} == fetched | settings


def test_the_shards_that_an_index_names_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}})
    more = {"model.safetensors.index.json": index, **dict.fromkeys([*shards, "model-old.safetensors"], "")}
    hub(monkeypatch, tmp_path / "cache", {**dict.fromkeys(HUB, "{}"), **more})
    directory = find_weights("owner/model", family("chinese_clip"))
    assert sorted(file.name for file in directory.glob("*model*")) == [*shards, "model.safetensors.index.json"]
    (directory / shards[1]).unlink()
    with pytest.raises(MissingWeightsError, match=f"{directory} holds no {shards[1]}$"):
        find_weights(str(directory), family("chinese_clip"))


def test_a_cached_model_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    hub(monkeypatch, cache, {}, reached=False)
    with pytest.raises(MissingWeightsError, match=r"the hub does not give it \(OfflineModeIsEnabled\)"):
        find_weights("owner/model", family("open_clip"))
    small_backbone("open_clip").save_pretrained(cache)
    assert find_weights("owner/model", family("open_clip")) == cache
    (cache / "open_clip_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"cache comes without open_clip_config.json"):
        find_weights("owner/model", family("open_clip"))


def test_the_cache_of_the_hub_is_found_by_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one format in the cache, though its list of the model's files names more."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = tmp_path / "models--owner--model"
    small_backbone("open_clip").save_pretrained(model / "snapshots" / "0123")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123")
    load = partial(snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr("xmodal_kedro.models.weights.snapshot_download", load)
    assert find_weights("owner/model", family("open_clip")) == model / "snapshots" / "0123"


@pytest.mark.parametrize("name", ["blip", "chinese_clip", "open_clip", "resnet_roberta"])
@pytest.mark.parametrize("damage", ["config", "empty config", "weights", "vocabulary"])
def test_a_damaged_directory_is_one_clear_error(name: str, damage: str, tmp_path: Path) -> None:
    small_backbone(name).save_pretrained(tmp_path)
    kind = family(name)
    if damage == "vocabulary":
        (tmp_path / "tokenizer.json").write_text("{bad")
        if name == "open_clip":
            pytest.skip("open_clip brings its own vocabulary")
    elif damage == "weights":
        file = tmp_path / kind.library_weights
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (tmp_path / kind.library_files[0][0]).write_text("{bad" if damage == "config" else "{}")
    with pytest.raises((BrokenArtifactError, PublishedWeightsError, ArchitectureError), match=str(tmp_path)) as failure:
        build(BackboneConfig(name=name, weights=str(tmp_path)))
    if type(failure.value) is BrokenArtifactError and "can open" in str(failure.value):
        assert f"holds no model that '{name}' can open" in str(failure.value)
        assert f"Wanted: {kind.wanted()}" in str(failure.value)
        assert failure.value.__cause__ is not None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("blip", "chinese_clip"),
        ("blip", "resnet_roberta"),
        ("chinese_clip", "blip"),
        ("chinese_clip", "resnet_roberta"),
    ],
)
def test_the_files_of_another_family_are_one_clear_error(given: str, name: str, tmp_path: Path) -> None:
    small_backbone(given).save_pretrained(tmp_path)
    with pytest.raises((BrokenArtifactError, ArchitectureError), match=str(tmp_path)):
        build(BackboneConfig(name=name, weights=str(tmp_path)))


def test_memory_that_runs_out_is_no_damaged_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_backbone("open_clip").save_pretrained(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(open_clip, "load_checkpoint", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        build(BackboneConfig(name="open_clip", weights=str(tmp_path)))


def test_relative_weights_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_backbone("open_clip").save_pretrained(tmp_path / "data" / "clip")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # `data/clip` could be a hub id, too
    config = BackboneConfig(name="open_clip", weights="data/clip")
    with pytest.raises(MissingWeightsError):
        build(config)
    assert build(config.at(tmp_path)).image_size == SIZE
