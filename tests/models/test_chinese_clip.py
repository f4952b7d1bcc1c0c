"""Chinese-CLIP as transformers computes and opens it, from either weight file; what cannot be read is said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ChineseCLIPModel, ChineseCLIPProcessor

from tests.models.small import SIZE, SMALL, TEXTS, changed, small_backbone
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.models import build, family
from xmodal_kedro.models.backbone import ArchitectureError, Backbone
from xmodal_kedro.models.vocabulary import SPECIAL, learn_vocabulary
from xmodal_kedro.models.weights import MissingWeightsError

TOKENIZERS = Path(__file__).parents[2] / ".." / "shared" / "data" / "tokenizers"


def loaded(weights: Path | str) -> Backbone:
    return build(BackboneConfig(name="chinese_clip", weights=str(weights))).eval()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory in the layout of the hub, with a .bin in place of safetensors."""
    backbone = small_backbone("chinese_clip", seed=3)
    backbone.save_settings(tmp_path)
    tensors = backbone.model.state_dict()
    # Old versions of transformers saved this buffer.
    tensors["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_features_and_logits_are_those_of_the_forward_of_transformers(tmp_path: Path) -> None:
    backbone = small_backbone("chinese_clip")
    backbone.save_pretrained(tmp_path)
    model: Any = ChineseCLIPModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(len(TEXTS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
        image = nn.functional.normalize(backbone.encode_image(pixels), dim=-1)
        text = nn.functional.normalize(backbone.encode_text(tokens), dim=-1)
    torch.testing.assert_close(image, output.image_embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(text, output.text_embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(backbone.logit_scale.exp() * text @ image.T, output.logits_per_text)


def test_a_published_bin_gives_the_same_weights_and_is_converted_once(published: Path) -> None:
    expected = small_backbone("chinese_clip", seed=3).model.state_dict()
    for _ in range(2):
        state = loaded(published).model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert (published / "pytorch_model.bin.safetensors").is_file()


def test_tensors_that_are_missing_are_said_and_not_drawn_at_random(published: Path) -> None:
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    del tensors["visual_projection.weight"]
    torch.save(tensors, published / "pytorch_model.bin")
    with pytest.raises(ArchitectureError, match=r"1 tensors that config.json asks for .* such as visual_projection"):
        loaded(published)


@pytest.mark.parametrize(
    "weights", ["OFA-Sys/chinese-clip-rn50", "hf-hub:OFA-Sys/chinese-clip-rn50", "clip_cn_rn50.pt"]
)
def test_the_resnet_is_not_supported_by_name(weights: str) -> None:
    with pytest.raises(MissingWeightsError, match=f"'{weights}' is not supported: .* no Chinese-CLIP with a ResNet"):
        loaded(weights)


@pytest.mark.parametrize("layers", [[3, 4, 6, 3], "[3,4,6,3]"])
def test_the_resnet_is_not_supported_by_its_config(published: Path, layers: Any) -> None:
    (published / "config.json").write_text(json.dumps({"embed_dim": 1024, "vision_layers": layers}))
    with pytest.raises(ArchitectureError, match="no Chinese-CLIP with a ResNet"):
        loaded(published)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.layer1.0.conv1.weight", "no Chinese-CLIP with a ResNet"),
        ("visual.conv1.weight", "tensor names of the original code"),
        ("bert.embeddings.LayerNorm.weight", "tensor names of the original code"),
    ],
)
def test_weights_of_the_original_code_are_known_by_their_names(published: Path, name: str, message: str) -> None:
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": torch.ones(1)}}, published / "pytorch_model.bin")
    with pytest.raises(ArchitectureError, match=message):
        loaded(published)


def test_original_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "clip_cn_vit-h-14.pt").touch()
    for weights in (tmp_path, tmp_path / "clip_cn_vit-h-14.pt"):
        with pytest.raises(MissingWeightsError, match=r"clip_cn_vit-h-14.pt' is not supported.*config.json, vocab.txt"):
            loaded(weights)


def test_a_tag_is_for_open_clip_alone() -> None:
    with pytest.raises(MissingWeightsError, match="model:tag is for open_clip alone"):
        loaded("ViT-B-32:openai")


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
