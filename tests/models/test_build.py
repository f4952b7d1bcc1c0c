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
from PIL import Image
from torch import nn
from transformers import BertConfig, BertTokenizer, ChineseCLIPModel, ChineseCLIPProcessor

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build, family
from xmodal_kedro.models.backbone import ArchitectureError
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.vocabulary import SPECIAL, learn_vocabulary
from xmodal_kedro.models.weights import MissingWeightsError, find_weights

TOKENIZERS = Path(__file__).parents[2] / ".." / "shared" / "data" / "tokenizers"


def changed(name: str, **architecture: Any) -> BackboneConfig:
    config = SMALL[name]
    return BackboneConfig(name=config.name, architecture={**(config.architecture or {}), **architecture})


# --- choice and freezing


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backbone.name 'clip' is unknown: there are blip, chinese_clip, open_clip"):
        build(BackboneConfig(name="clip", architecture={}))


def test_modules_beside_the_backbones_are_no_backbones() -> None:
    with pytest.raises(ValueError, match="'transform' is unknown"):
        family("transform")


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


# --- open_clip


def test_open_clip_opens_what_we_save_and_encodes_alike(tmp_path: Path) -> None:
    """Its own loader, tokenizer and full-length text encoder against ours."""
    backbone = small_backbone("open_clip")
    backbone.save_pretrained(tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert ids.shape[1] == 40
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_text(backbone.tokenize(TEXTS)), model.eval().encode_text(ids), atol=1e-5, rtol=1e-5
        )
    packed = torch.randint(0, 256, (1, SIZE, SIZE, 3), dtype=torch.uint8)
    expected = preprocess(Image.fromarray(packed[0].numpy()))
    torch.testing.assert_close(backbone.image_transform(train=False)(packed)[0], expected, atol=1e-5, rtol=1e-5)


def test_open_clip_configs_are_found_by_name() -> None:
    with pytest.raises(ArchitectureError, match=r"open_clip has no 'ViT-B32'; similar are .*ViT-B-32"):
        build(BackboneConfig(name="open_clip", architecture={"model_name": "ViT-B32"}))
    with pytest.raises(ArchitectureError, match=r"\['embed_dim'\] must go"):
        build(BackboneConfig(name="open_clip", architecture={"model_name": "ViT-B-32", "embed_dim": 4}))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"vision_cfg": {"image_size": 32, "widht": 8}}, "widht"),
        ({"vision_cfg": {"image_size": 32, "timm_model_name": "resnet_none"}}, "resnet_none"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_open_clip_names_the_key_that_is_wrong(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ArchitectureError, match=key):
        build(changed("open_clip", **change))
    with pytest.raises(ArchitectureError, match="embed_dim"):
        build(BackboneConfig(name="open_clip", architecture={"vision_cfg": {}, "text_cfg": {}}))


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}])
def test_texts_are_not_trimmed_where_padding_counts(text: dict[str, Any]) -> None:
    small = SMALL["open_clip_custom_text"].architecture or {}
    backbone = build(changed("open_clip_custom_text", text_cfg={**small["text_cfg"], **text}))
    tokens = backbone.tokenize(TEXTS[:1])
    assert tokens["input_ids"].shape == (1, 40)
    with torch.no_grad():
        expected = backbone.model.encode_text(backbone.tokenizer(TEXTS[:1]))  # type: ignore[operator, attr-defined]
        assert torch.equal(backbone.encode_text(tokens), expected)


def test_a_transformers_text_tower_brings_its_files_along(tmp_path: Path) -> None:
    source, saved = tmp_path / "tiny-bert", tmp_path / "saved"
    vocabulary = learn_vocabulary(TEXTS, 300)
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(source)
    BertTokenizer({token: row for row, token in enumerate(vocabulary)}).save_pretrained(source)
    text = {"hf_model_name": str(source), "hf_tokenizer_name": str(source), "context_length": 40}
    backbone = build(changed("open_clip", text_cfg={**text, "hf_proj_type": "linear"})).eval()
    backbone.save_pretrained(saved)
    for file in source.iterdir():
        file.unlink()
    again = family("open_clip").from_pretrained(saved).eval()
    with torch.no_grad():
        together = backbone.encode_text(backbone.tokenize(TEXTS))
        alone = torch.cat([backbone.encode_text(backbone.tokenize([text])) for text in TEXTS])
        assert torch.equal(again.encode_text(again.tokenize(TEXTS)), together)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    assert backbone.tokenize(TEXTS[:1])["input_ids"].shape[1] < 40
    parameters = [p for group in backbone.layer_groups("text") for p in group]
    assert len(parameters) == len(list(backbone.model.text.parameters()))  # type: ignore[union-attr]


# --- chinese_clip


def test_transformers_opens_what_we_save_and_encodes_alike(tmp_path: Path) -> None:
    backbone = small_backbone("chinese_clip")
    backbone.save_pretrained(tmp_path)
    model, processor = ChineseCLIPModel.from_pretrained(tmp_path), ChineseCLIPProcessor.from_pretrained(tmp_path)
    packed = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    inputs = processor(text=TEXTS[:2], images=list(packed.permute(0, 3, 1, 2)), return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.eval()(**inputs)
        text = backbone.encode_text(backbone.tokenize(TEXTS[:2]))
        image = backbone.encode_image(backbone.image_transform(train=False)(packed))
    torch.testing.assert_close(nn.functional.normalize(text, dim=-1), output.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nn.functional.normalize(image, dim=-1), output.image_embeds, atol=1e-5, rtol=1e-5)


def test_the_published_layout_has_a_vocab_txt_alone(tmp_path: Path) -> None:
    backbone = small_backbone("chinese_clip")
    backbone.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    again = family("chinese_clip").from_pretrained(tmp_path)
    assert torch.equal(again.tokenize(TEXTS)["input_ids"], backbone.tokenize(TEXTS)["input_ids"])
    assert again.mean == backbone.mean


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the Chinese vocabulary is in ../shared/data, which is not here")
def test_the_published_vocabulary_gives_the_published_ids() -> None:
    backbone = build(changed("chinese_clip", vocabulary=str(TOKENIZERS / "bert_chinese_vocab.txt")))
    assert backbone.tokenize(["杰尼龟"])["input_ids"].tolist() == [[101, 3345, 2225, 7991, 102]]
    assert backbone.model.config.text_config.vocab_size == 21128  # type: ignore[union-attr]


def test_texts_are_normalised_as_for_chinese_clip() -> None:
    backbone = small_backbone("chinese_clip")
    ids = backbone.tokenize(["A “SHORT” Car", 'a "short" car'])["input_ids"]
    assert torch.equal(ids[0], ids[1])
    assert backbone.tokenize(["car " * 100])["input_ids"].shape == (1, 52)


def test_a_learned_vocabulary_knows_every_character_and_is_always_the_same() -> None:
    words = learn_vocabulary(["red cars", "red bus", "白车。"], 1000)
    assert words[:5] == list(SPECIAL)
    assert {"red", "cars", "bus", "r", "##r", "白", "车", "。"} <= set(words)
    assert "白车" not in words
    assert len(words) == len(set(words))
    assert words == learn_vocabulary(["白车。", "red bus", "red cars"], 1000)
    assert learn_vocabulary(["red cars", "red bus", "白车。"], 12) == words[:12]
    assert words.index("red") < words.index("bus")


def test_chinese_clip_needs_a_vocabulary_or_texts(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="needs a vocabulary file, or texts"):
        build(SMALL["chinese_clip"])
    with pytest.raises(ArchitectureError, match=r"vocabulary: there is no file /.*none.txt"):
        build(changed("chinese_clip", vocabulary="none.txt"))
    (tmp_path / "words.txt").write_text("a\nb\n")
    with pytest.raises(ArchitectureError, match=r"is no BERT vocabulary, it lacks \['\[PAD\]'"):
        build(changed("chinese_clip", vocabulary=str(tmp_path / "words.txt")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {"hiden_size": 8}}, "knows no vision_config.hiden_size"),
        ({"text_config": 5}, "text_config must be a mapping"),
        ({"projection": 5}, "knows no projection"),
        ({"vision_config": {"hidden_size": "8"}}, "hidden_size"),
    ],
)
def test_chinese_clip_names_the_key_that_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build(changed("chinese_clip", **change), texts=TEXTS)


def test_published_names_are_in_the_saved_files(tmp_path: Path) -> None:
    small_backbone("chinese_clip").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "chinese_clip"
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()[:5] == list(SPECIAL)
