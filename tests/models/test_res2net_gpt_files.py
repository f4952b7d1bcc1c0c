"""A Res2Net and a GPT from files: saved and read again, started from weights of their parts, and clear errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.models.small import SIZE, SMALL, TEXTS
from tests.models.small_res2net_gpt import SIZES, changed, load, same, small
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes
from xmodal_kedro.models.published import PublishedWeightsError
from xmodal_kedro.models.weights import MissingWeightsError

# --- vocabulary


def test_a_vocabulary_is_learned_up_to_a_limit_or_read(tmp_path: Path) -> None:
    text_config = {**SIZES["text_config"], "vocab_size": 10}
    limited: Any = build(changed(text_config=text_config), texts=TEXTS)
    assert limited.characters == Characters.learn(TEXTS, 10)
    assert limited.model.text.tokens.num_embeddings == 10
    limited.characters.write(tmp_path / "words.json")
    read: Any = build(changed(vocabulary=str(tmp_path / "words.json")))
    assert read.characters == limited.characters
    assert read.model.text.head.out_features == 10


# --- files


def test_a_saved_directory_says_what_the_model_is(tmp_path: Path) -> None:
    backbone: Any = build(changed(mean=[0.1, 0.2, 0.3], temperature=0.5, dropout=0.25), 3, TEXTS).eval()
    backbone.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "vocab.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["image"], config["image_size"]) == ("res2net_gpt", "test_resnet", SIZE)
    assert config["text_config"]["vocab_size"] == len(backbone.characters)
    again = load(tmp_path)
    assert again.settings == backbone.settings
    assert again.characters == backbone.characters
    assert again.mean == (0.1, 0.2, 0.3)
    assert math.exp(-again.logit_scale.item()) == pytest.approx(0.5)
    assert same(again.model, backbone.model)
    assert not any(p.requires_grad for p in again.model.text.head.parameters())


def test_the_normalisation_in_use_is_saved(tmp_path: Path) -> None:
    backbone = small()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    backbone.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert (again.mean, again.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{bad", "holds no model that 'res2net_gpt' can open"),
        ("config.json", "{}", "holds no model that 'res2net_gpt' can open"),
        ("vocab.json", "{bad", "vocab.json is no JSON"),
        ("vocab.json", '{"a": 0}', "vocab.json is no vocabulary"),
        (
            "vocab.json",
            '{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}',
            r"has 4 tokens, and config.json .* says \d+",
        ),
        ("model.safetensors", "", "holds no tensors that can be read"),
    ],
)
def test_a_damaged_directory_is_one_clear_error(file: str, content: str, message: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises((BrokenArtifactError, ArchitectureError), match=message) as failure:
        load(tmp_path)
    assert str(tmp_path) in str(failure.value)
    (tmp_path / file).unlink()
    with pytest.raises(MissingWeightsError, match=f"{tmp_path} holds no .*{file}"):
        load(tmp_path)


# --- weights of the parts


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "resnet.pth"])
def test_the_image_model_may_start_from_its_published_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    published = timm.create_model("test_resnet")  # with its classifier
    tensors = published.state_dict()
    if name.endswith(".safetensors"):
        save_file(tensors, tmp_path / name)
    else:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
        torch.save(tensors, tmp_path / name)
    source = tmp_path / name if name == "resnet.pth" else tmp_path
    backbone: Any = build(changed(image_weights=str(source)), 0, TEXTS)
    own = backbone.model.image.trunk.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in tensors.items() if not key.startswith("fc."))
    assert "fc.weight" in tensors
    assert "fc.weight" not in own
    assert same(backbone.model.text, small().model.text)  # the rest is as random as without


def test_the_gpt_may_start_from_another_one_with_its_vocabulary(tmp_path: Path) -> None:
    first: Any = build(SMALL["res2net_gpt"], 7, ["别的", *TEXTS])
    first.save_pretrained(tmp_path / "whole")
    second: Any = build(changed(text_weights=str(tmp_path / "whole")), 0, TEXTS)
    assert second.characters == first.characters != small().characters
    assert same(second.model.text, first.model.text)
    assert not same(second.model.image, first.model.image)

    alone = tmp_path / "alone"
    alone.mkdir()
    first.characters.write(alone / "vocab.json")
    torch.save(first.model.text.state_dict(), alone / "pytorch_model.bin")
    third: Any = build(changed(text_weights=str(alone)))
    assert third.characters == first.characters
    assert same(third.model.text, first.model.text)


def test_weights_that_are_not_those_of_the_part_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", channels=(16, 16, 16, 16)).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(BrokenArtifactError, match=r"model.safetensors is not the image model .* \d+ tensors .* layer"):
        build(changed(image_weights=str(tmp_path)), 0, TEXTS)
    characters = Characters.learn(TEXTS)
    characters.write(tmp_path / "vocab.json")
    gpt = GPT(GPTSizes(vocab_size=len(characters), layers=3, heads=2, width=16, block_size=40))
    save_file(gpt.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(BrokenArtifactError, match=r"is not a GPT of this architecture: \d+ tensors .* blocks.2"):
        build(changed(text_weights=str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    torch.save(_Evil(), tmp_path / "pytorch_model.bin")
    with pytest.raises(PublishedWeightsError, match="holds more than tensors"):
        build(changed(text_weights=str(tmp_path)))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"architecture\.image_weights: there is no directory /.*/none\. Wan"):
        build(changed(image_weights=str(tmp_path / "none")), 0, TEXTS)
    with pytest.raises(MissingWeightsError, match=rf"text_weights: {tmp_path} holds no vocab\.json, and no weights"):
        build(changed(text_weights=str(tmp_path)))
    Characters.learn(TEXTS).write(tmp_path / "vocab.json")
    with pytest.raises(MissingWeightsError, match=rf"text_weights: {tmp_path} holds no weights\.safetensors or model"):
        build(changed(text_weights=str(tmp_path)))
    with pytest.raises(MissingWeightsError, match=r"text_weights: .*/vocab.json is a file. Give its directory"):
        build(changed(text_weights=str(tmp_path / "vocab.json")))
    with pytest.raises(ArchitectureError, match="text_weights brings its own vocabulary"):
        build(changed(text_weights=str(tmp_path), vocabulary=str(tmp_path / "vocab.json")))


def test_parts_may_lie_below_the_projects_root_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: Any = build(SMALL["res2net_gpt"], 7, TEXTS)
    first.save_pretrained(tmp_path / "weights" / "gpt")
    torch.save(first.model.image.trunk.state_dict(), tmp_path / "weights" / "image.pth")
    first.characters.write(tmp_path / "words.json")
    paths = {"image_weights": "weights/image.pth", "text_weights": "weights/gpt"}
    both: Any = build(changed(**paths), 0, root=tmp_path)
    assert same(both.model.text, first.model.text)
    assert same(both.model.image.trunk, first.model.image.trunk)
    read: Any = build(changed(vocabulary="words.json"), root=tmp_path)
    assert read.characters == first.characters
    with pytest.raises(ArchitectureError, match="there is no vocabulary"):
        build(changed(vocabulary="words.json"))

    asked = []

    def fetched(hub_id: str, wanted: Any) -> Path:
        asked.append((hub_id, wanted))
        return tmp_path / "weights" / "gpt"

    monkeypatch.setattr("xmodal_kedro.models.weights._fetched", fetched)
    hub: Any = build(changed(text_weights="owner/gpt"), root=tmp_path)
    assert same(hub.model.text, first.model.text)
    files = (("vocab.json",), ("weights.safetensors", "model.safetensors", "pytorch_model.bin"))
    assert asked == [("owner/gpt", files)]


def test_a_checkpoint_under_its_own_name_is_as_good(tmp_path: Path) -> None:
    backbone = small()
    backbone.save_pretrained(tmp_path)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "weights.safetensors")
    assert same(load(tmp_path).model, backbone.model)
    assert "logit_scale" in load_file(tmp_path / "weights.safetensors")
    again: Any = build(changed(text_weights=str(tmp_path)))
    assert same(again.model.text, backbone.model.text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 5}, "widht: Extra inputs"),
        ({"image": "res2next500"}, r"image: timm has no model 'res2next500'; similar are .*res2next50"),
        ({"image": "hf-hub:timm/res2next50"}, "image: timm has no model"),
        ({"image": "res2next50.nothing"}, r"timm cannot build 'res2next50.nothing' .*nothing"),
        ({"temperature": 0.001}, "temperature: Input should be greater than or equal to 0.01"),
        ({"text_config": {"hiden": 8}}, "text_config of res2net_gpt: hiden: Extra inputs"),
        ({"text_config": {"width": 10, "heads": 4}}, "text_config of res2net_gpt: .*heads"),
        ({"text_config": {"vocab_size": 4}}, "vocabulary of res2net_gpt: a vocabulary of 4 tokens has no room"),
        ({"vocabulary": "nowhere.json"}, r"vocabulary of res2net_gpt: there is no vocabulary /.*nowhere.json"),
    ],
)
def test_the_key_that_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build(changed(**change), texts=TEXTS)


def test_a_vocabulary_or_texts_are_needed() -> None:
    with pytest.raises(ArchitectureError, match="vocabulary of res2net_gpt: there are no texts to learn"):
        build(SMALL["res2net_gpt"])


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was run",)
