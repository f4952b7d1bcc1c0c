"""open_clip opens what we save, and every published form of its weights loads to the features that it computes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import BertConfig, BertTokenizer

from tests.models.small import SIZE, SMALL, TEXTS, changed, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.models import build, family
from xmodal_kedro.models.backbone import ArchitectureError, Backbone
from xmodal_kedro.models.open_clip import OpenClip
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.vocabulary import learn_vocabulary
from xmodal_kedro.models.weights import MissingWeightsError

TINY = "xmodal-tiny"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the layout of the hub with a .bin, of an architecture that open_clip knows by name."""
    backbone = small_backbone("open_clip", seed=3)
    backbone.save_settings(tmp_path)
    torch.save(backbone.model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    known = open_clip.get_model_config
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(config) if name == TINY else known(name))
    return tmp_path


def loaded(weights: Path | str, model_name: str | None = None, **changes: Any) -> Backbone:
    architecture = None if model_name is None else {"model_name": model_name, **changes}
    return build(BackboneConfig(name="open_clip", weights=str(weights), architecture=architecture)).eval()


def same(one: Backbone, two: Backbone) -> bool:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = torch.equal(one.encode_text(one.tokenize(TEXTS)), two.encode_text(two.tokenize(TEXTS)))
        return texts and torch.equal(one.encode_image(pixels), two.encode_image(pixels))


def names_of(backbone: Backbone, groups: list[list[nn.Parameter]]) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
    return [{names[id(parameter)] for parameter in group} for group in groups]


def test_a_published_bin_loads_as_it_is_and_is_converted_once(published: Path) -> None:
    expected = small_backbone("open_clip", seed=3)
    assert same(loaded(published), expected)
    assert (published / "open_clip_pytorch_model.bin.safetensors").is_file()
    made = (published / "open_clip_pytorch_model.bin.safetensors").stat().st_mtime_ns
    assert same(loaded(published), expected)
    assert (published / "open_clip_pytorch_model.bin.safetensors").stat().st_mtime_ns == made


def test_a_read_only_directory_loads_too(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert same(loaded(published), small_backbone("open_clip", seed=3))
    assert not (published / "open_clip_pytorch_model.bin.safetensors").exists()


def test_weights_without_their_config_need_the_name_of_the_architecture(published: Path) -> None:
    file = published / "open_clip_pytorch_model.bin"
    with pytest.raises(MissingWeightsError, match=r"comes without open_clip_config.json.*\{model_name: ViT-H-14\}"):
        loaded(file)
    with pytest.raises(ArchitectureError, match="brings its own architecture"):
        loaded(published, TINY)
    (published / "open_clip_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"comes without open_clip_config.json"):
        loaded(published)
    expected = small_backbone("open_clip", seed=3)
    assert same(loaded(file, TINY), expected)
    assert same(loaded(published, TINY), expected)
    shutil.copy(file, published / "other.pt")
    assert same(loaded(published / "other.pt", TINY), expected)
    with pytest.raises(MissingWeightsError, match=r"one weight file .* is wanted in .*, there are 2"):
        loaded(published, TINY)
    with pytest.raises(ArchitectureError, match=r"is \{model_name: ...\} alone"):
        loaded(file, TINY, embed_dim=4)
    torch.save({"visual.proj": torch.ones(2, 2)}, file)
    with pytest.raises(ArchitectureError, match="does not fit this architecture"):
        loaded(file, TINY)


@pytest.mark.parametrize("writable", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    published: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: writable)
    torch.save({"state_dict": {}, "hook": os.getcwd}, published / "open_clip_pytorch_model.bin")
    with pytest.raises(PublishedWeightsError, match="holds more than tensors"):
        loaded(published)


def test_a_tag_loads_what_open_clip_would_load(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced; names, preprocessing and activation are open_clip's own."""
    tag = {"hf_hub": "laion/tiny/", "url": "", "mean": (0.5,) * 3, "std": (0.25,) * 3, "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag_: tag if tag_ == "openai" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(published / "open_clip_pytorch_model.bin"))
    backbone = loaded(f"{TINY}:openai")
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)
    quick = [type(module).__name__ for module in backbone.modules()]
    assert "QuickGELU" in quick
    assert not same(backbone, small_backbone("open_clip", seed=3))
    del tag["quick_gelu"]
    assert same(loaded(f"{TINY}:openai"), small_backbone("open_clip", seed=3))
    with pytest.raises(MissingWeightsError, match=f"open_clip has no 'none' for {TINY}"):
        loaded(f"{TINY}:none")
    with pytest.raises(ArchitectureError, match=r"open_clip has no 'ViT-B32'; similar are .*ViT-B-32"):
        loaded("ViT-B32:openai")


def test_a_tag_that_cannot_be_fetched_says_which_files_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise FileNotFoundError("offline")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(MissingWeightsError) as failure:
        loaded("ViT-B-32:laion2b_s34b_b79k")
    for part in (
        "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K ",
        "data/01_raw/weights/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "open_clip_config.json; open_clip_model.safetensors or open_clip_pytorch_model.bin",
        "{model_name: ViT-B-32}",
    ):
        assert part in str(failure.value)


@pytest.mark.parametrize("weights", ["laion/CLIP-big", "hf-hub:laion/CLIP-big"])
def test_a_hub_id_that_cannot_be_fetched_says_which_files_to_put_where(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError) as failure:
        loaded(weights)
    for part in ("https://huggingface.co/laion/CLIP-big ", "data/01_raw/weights/CLIP-big", "open_clip_config.json"):
        assert part in str(failure.value)


@pytest.mark.parametrize("name", sorted(name for name in SMALL if name.startswith("open_clip")))
def test_trimmed_captions_have_the_features_that_open_clip_gives_padded_ones(name: str) -> None:
    backbone = small_backbone(name)
    model: Any = backbone.model
    for text in TEXTS:
        tokens = backbone.tokenize([text])
        assert tokens["input_ids"].shape[1] < 40
        with torch.no_grad():
            expected = model.encode_text(backbone.tokenizer([text]))  # type: ignore[attr-defined]
            torch.testing.assert_close(backbone.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_last_five_groups_of_a_vit_h_are_those_that_open_clip_unlocks() -> None:
    """The published lock: projection, last block with its norm, and the three blocks before it."""
    with torch.device("meta"):  # else it draws random weights before it throws them away
        model: Any = open_clip.create_model("ViT-H-14", device="meta")
        theirs: Any = open_clip.create_model("ViT-H-14", device="meta")
    settings = {"model_cfg": open_clip.get_model_config("ViT-H-14"), "preprocess_cfg": {}}
    backbone = OpenClip(model, open_clip.get_tokenizer("ViT-H-14"), settings)
    *_, first, second, third, last, head = names_of(backbone, backbone.layer_groups("image"))
    for group, block in zip((first, second, third), (28, 29, 30), strict=True):
        assert {name.rsplit("resblocks.")[1].split(".")[0] for name in group} == {str(block)}
    assert {name.split(".")[1] for name in last} == {"transformer", "ln_post"}
    assert {name.split(".")[3] for name in last if "resblocks" in name} == {"31"}
    assert head == {"visual.proj"}
    backbone.freeze({"image": 5})
    ours = {name for name, parameter in model.visual.named_parameters() if parameter.requires_grad}
    theirs.lock_image_tower(unlocked_groups=5)
    assert ours == {name for name, parameter in theirs.visual.named_parameters() if parameter.requires_grad}
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "visual" not in name)


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
