"""ResNet and RoBERTa against their own libraries, in their own layouts, with the published tokenizer."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.transforms.v2 import functional as tv
from transformers import BertConfig, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaModel

from tests.conftest import SHARED
from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from tests.recipes.weights import save_roberta_tokenizer
from xmodal_kedro.config.member import BackboneConfig, LoraConfig, LossConfig, TrainConfig
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError, Backbone, Batch, TrainState
from xmodal_kedro.models.lora import LoraError, add_lora
from xmodal_kedro.models.resnet_roberta import ImageTower, ResNetRoberta, learn_byte_pairs
from xmodal_kedro.models.weights import MissingWeightsError
from xmodal_kedro.training.loop import train

needs_tokenizer = pytest.mark.skipif(
    not (SHARED / "tokenizers").is_dir(), reason="the tokenizer of RoBERTa is in ../shared/data, which is not here"
)
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def changed(**architecture: Any) -> BackboneConfig:
    return BackboneConfig(
        name="resnet_roberta", architecture={**(SMALL["resnet_roberta"].architecture or {}), **architecture}
    )


def load(directory: Path) -> Backbone:
    return build(BackboneConfig(name="resnet_roberta", weights=str(directory))).eval()


def pixels(count: int = 3, side: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def save_text_tower(directory: Path, *, head: bool) -> RobertaModel:
    """A small RoBERTa in the layout of the hub, saved with its pooler or, as for language modelling, with a head."""
    tokenizer = learn_byte_pairs(TEXTS, 400)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=1, **TEXT)
    torch.manual_seed(1)
    model = RobertaForMaskedLM(config) if head else RobertaModel(config)
    model.save_pretrained(directory)
    tokenizer.backend_tokenizer.model.save(str(directory))
    return (model.roberta if head else model).eval()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory with the files of both towers, as they are downloaded."""
    directory = tmp_path / "pretrains"
    (directory / "image").mkdir(parents=True)
    torch.manual_seed(2)
    torch.save(resnet18().state_dict(), directory / "image" / "resnet18-f37072fd.pth")
    save_text_tower(directory / "text", head=False)
    return directory


# --- features


def test_both_towers_are_those_of_their_libraries(published: Path) -> None:
    backbone = load(published)
    resnet = resnet18()
    resnet.load_state_dict(torch.load(published / "image" / "resnet18-f37072fd.pth", weights_only=True))
    resnet.fc = nn.Linear(512, 16)
    resnet.fc.load_state_dict(backbone.model.image.fc.state_dict())  # type: ignore[union-attr]
    roberta = RobertaModel.from_pretrained(published / "text").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_image(pixels(side=96)), resnet.eval()(pixels(side=96)), atol=1e-4, rtol=1e-4
        )
        for text in TEXTS:
            tokens = backbone.tokenize([text])
            expected = roberta(input_ids=tokens["input_ids"]).pooler_output
            torch.testing.assert_close(backbone.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)
    assert (backbone.image_size, backbone.embed_dim, backbone.context) == (224, 16, 128)


@pytest.mark.parametrize(
    ("sizes", "library"),
    [
        (ImageTower(), resnet50),
        (ImageTower(block="basic", layers=[2, 2, 2, 2]), resnet18),
    ],
)
def test_sizes_are_those_of_torchvision(sizes: ImageTower, library: Any) -> None:
    with torch.device("meta"):
        text = {**TEXT, "max_position_embeddings": 66}
        backbone = ResNetRoberta.from_config({"image": sizes.model_dump(), "text_config": text}, 0, TEXTS)
        expected = library(num_classes=16).state_dict()
    found = backbone.model.image.state_dict()  # type: ignore[union-attr]
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_pixels_are_not_normalised_unless_asked_for() -> None:
    """As published: a squash to the size, and 0..255 to 0..1."""
    packed = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    plain = small_backbone("resnet_roberta").image_transform(train=False)(packed)
    expected = torch.stack([tv.to_dtype(tv.pil_to_tensor(Image.fromarray(p.numpy())), scale=True) for p in packed])
    torch.testing.assert_close(plain, expected, atol=1e-6, rtol=0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = build(changed(mean=mean, std=std), texts=TEXTS).image_transform(train=False)(packed)
    torch.testing.assert_close(normalised, tv.normalize(expected, mean, std), atol=1e-5, rtol=1e-5)


# --- temperature and training


def test_the_temperature_is_fixed() -> None:
    backbone = build(changed(temperature=0.005), texts=TEXTS)  # beyond where CLIP clamps it
    scale = backbone.logit_scale.item()
    assert math.exp(-scale) == pytest.approx(0.005)
    assert math.exp(-small_backbone("resnet_roberta").logit_scale.item()) == pytest.approx(0.07)
    pixels_ = torch.randint(0, 256, (8, SIZE, SIZE, 3), dtype=torch.uint8).numpy()
    examples = pd.DataFrame({"text": [f"{text} {n}" for n, text in enumerate(TEXTS[:4] * 2)], "image_row": range(8)})
    config = TrainConfig(epochs=2, batch_size=4, lr=1e-3, keep="last", loss=LossConfig(directions="sum"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    train(backbone, pixels_, examples.assign(key=range(8)), None, config)
    after = backbone.state_dict()
    assert after["model.logit_scale"].item() == scale
    same = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert same == {"model.logit_scale"}


def test_the_loss_is_the_sum_of_both_directions_at_the_temperature() -> None:
    backbone = small_backbone("resnet_roberta")
    batch = Batch(pixels(len(TEXTS)), backbone.tokenize(TEXTS))
    state = TrainState(step=0, steps=1, steps_per_epoch=1, loss=LossConfig(directions="sum"))
    with torch.no_grad():
        image = nn.functional.normalize(backbone.encode_image(batch.pixels), dim=1)
        text = nn.functional.normalize(backbone.encode_text(batch.tokens), dim=1)
        logits, right = image @ text.T / 0.07, torch.arange(len(TEXTS))
        expected = nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)
        torch.testing.assert_close(backbone.training_step(batch, state)["loss"], expected)


def test_checkpointed_gradients_are_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = build(SMALL["resnet_roberta"].model_copy(update={"grad_checkpointing": checkpointing}), 0, TEXTS)
        backbone.train()
        torch.manual_seed(3)  # of the dropout
        calls: Counter[str] = Counter()
        block: Any = backbone.model.text.encoder.layer[0].attention  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda module, given, calls=calls: calls.update("x"))
        batch = Batch(pixels(len(TEXTS)), backbone.tokenize(TEXTS))
        backbone.training_step(batch, TrainState(0, 1, 1, LossConfig()))["loss"].backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
        assert calls.total() == 1 + checkpointing
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_adapters_fit_the_text_tower_alone() -> None:
    backbone = small_backbone("resnet_roberta")
    assert add_lora(backbone, LoraConfig(rank=2, towers="text")) == {"text": 3 * 2}
    with pytest.raises(LoraError, match="the image tower of this model has no self-attention"):
        add_lora(small_backbone("resnet_roberta"), LoraConfig(rank=2, towers="both"))


# --- tokens


@needs_tokenizer
def test_the_published_tokenizer_gives_the_published_ids(tmp_path: Path) -> None:
    save_roberta_tokenizer(tmp_path)
    backbone = build(changed(vocabulary=str(tmp_path)))
    assert backbone.tokenize(["Hello world", "a"])["input_ids"].tolist() == [[0, 31414, 232, 2], [0, 102, 2, 1]]
    assert backbone.model.text.config.vocab_size == 50265  # type: ignore[union-attr]


def test_padding_and_context() -> None:
    backbone = small_backbone("resnet_roberta")
    assert backbone.context == 64
    tokens = backbone.tokenize(["word " * 100, "a"])
    assert tokens["input_ids"].shape == (2, 64)
    assert tokens["input_ids"][:, 0].tolist() == [0, 0]
    assert tokens["input_ids"][0, -1] == 2
    assert (tokens["input_ids"][1] == 1).equal(tokens["attention_mask"][1] == 0)
    backbone.limit_context(10)
    assert backbone.tokenize(["word " * 100])["input_ids"].shape == (1, 10)
    with torch.no_grad():
        assert backbone.encode_text(tokens).isfinite().all()  # the last position exists
    with pytest.raises(ValueError, match=r"backbone.context is 65.*10 tokens"):
        backbone.limit_context(65)


def test_learned_byte_pairs_know_every_text_and_are_always_the_same() -> None:
    texts = ["red cars", "red bus", "白车。"]
    tokenizer = learn_byte_pairs(texts, 1000)
    unseen = "never seen: 猫 é🙂"
    assert tokenizer.decode(tokenizer(unseen)["input_ids"], skip_special_tokens=True) == unseen
    assert len(tokenizer("red")["input_ids"]) == 3  # <s> red </s>
    assert tokenizer.get_vocab() == learn_byte_pairs(texts[::-1], 1000).get_vocab()
    assert len(learn_byte_pairs(texts, 263)) == 263
    with pytest.raises(ArchitectureError, match="vocab_size is 260: bytes and special tokens alone are 261"):
        learn_byte_pairs(texts, 260)


# --- files


def test_a_published_model_that_was_saved_is_one_directory(published: Path, tmp_path: Path) -> None:
    size = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (published / "preprocessor_config.json").write_text(json.dumps(size))
    backbone = load(published)
    assert (backbone.image_size, backbone.mean, backbone.std) == (64, (0.5,) * 3, (0.25,) * 3)
    backbone.save_pretrained(tmp_path / "joint")
    again = load(tmp_path / "joint")
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels(side=64)), backbone.encode_image(pixels(side=64)))
        tokens = backbone.tokenize(TEXTS)
        assert torch.equal(again.encode_text(again.tokenize(TEXTS)), backbone.encode_text(tokens))
    assert again.context == backbone.context
    assert {"vocab.json", "merges.txt", "config.json"} <= {path.name for path in (tmp_path / "joint").iterdir()}


def test_published_weights_load_alike_every_time(published: Path) -> None:
    first, again = load(published), load(published)  # the second time from the converted file
    assert (published / "image" / "resnet18-f37072fd.pth.safetensors").is_file()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_safetensors_are_as_good(published: Path) -> None:
    expected = load(published)
    file = published / "image" / "resnet18-f37072fd.pth"
    tensors = torch.load(file, weights_only=True)
    for old in (published / "image").iterdir():
        old.unlink()
    save_file(tensors, published / "image" / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(published).encode_image(pixels()), expected.encode_image(pixels()))


def test_a_language_model_lends_its_encoder(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = save_text_tower(published / "text", head=True)
    with caplog.at_level(logging.WARNING):
        backbone = load(published)
    assert "holds no pooler: it starts with random weights" in caplog.text
    tensors = backbone.model.text.state_dict()  # type: ignore[union-attr]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert torch.equal(tensors["pooler.dense.weight"], load(published).model.text.pooler.dense.weight)  # type: ignore


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("image", r"pretrains/image must hold one file of weights, it has none"),
        ("image/resnet18-f37072fd.pth", r"pretrains/image must hold one file of weights, it has none"),
        ("text", r"pretrains/text holds no config.json, and no vocab.json or tokenizer.json"),
        ("text/vocab.json", r"pretrains/text holds no vocab.json or tokenizer.json"),
        ("text/model.safetensors", r"pretrains/text holds no model.safetensors or"),
    ],
)
def test_missing_files_are_named_with_where_to_put_them(published: Path, missing: str, message: str) -> None:
    (published / missing).rename(published.parent / "elsewhere")
    with pytest.raises(MissingWeightsError, match=rf"{message}.*into a directory with image/.*resnet50-11ad3fa6.pth"):
        load(published)


def test_a_directory_that_is_not_there_is_named_too(tmp_path: Path, published: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"there is no directory .*nowhere.*image/.*text/"):
        load(tmp_path / "nowhere")
    torch.save({}, published / "image" / "another.pth")
    with pytest.raises(MissingWeightsError, match=r"one file of weights, it has another.pth, resnet18-f37072fd.pth"):
        load(published)


def test_weights_of_another_model_are_refused(published: Path) -> None:
    file = published / "image" / "resnet18-f37072fd.pth"
    tensors = torch.load(file, weights_only=True)
    torch.save({**tensors, "layer1.0.conv1.weight": torch.zeros(32, 64, 3, 3)}, file)
    with pytest.raises(BrokenArtifactError, match=r"f37072fd.pth is of no plain ResNet: \d+ tensors .*layer1.0.bn1"):
        load(published)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(BrokenArtifactError, match="is of no ResNet of torchvision"):
        load(published)
    torch.save(tensors, file)
    config = BertConfig(vocab_size=300, **TEXT)
    BertModel(config).save_pretrained(published / "text")
    RobertaConfig(vocab_size=300, **{**TEXT, "num_hidden_layers": 3}).save_pretrained(published / "text")
    with pytest.raises(BrokenArtifactError, match=r"text holds no weights of the RoBERTa .* \d+ tensors are missing"):
        load(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 5}, "widht: Extra inputs"),
        ({"image": {"layers": [1, 1, 1]}}, "image.layers: List should have at least 4"),
        ({"image": {"block": "wide"}}, "image.block: Input should be 'basic' or 'bottleneck'"),
        ({"temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"text_config": {"hiden_size": 8}}, "RobertaConfig knows no hiden_size"),
        ({"text_config": {"hidden_size": "8"}}, "hidden_size"),
        ({"vocabulary": "nowhere"}, r"vocabulary: there is no file /.*nowhere/vocab.json"),
    ],
)
def test_the_key_that_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build(changed(**change), texts=TEXTS)


def test_a_vocabulary_or_texts_are_needed() -> None:
    with pytest.raises(ArchitectureError, match="needs a vocabulary, or texts"):
        build(SMALL["resnet_roberta"])
