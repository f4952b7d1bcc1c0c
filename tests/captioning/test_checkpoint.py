"""A captioner's directory alone is enough: it writes the same captions, and opens as a member's weights, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.captioning.test_transformers_captioner import save_blip
from tests.models.small import SIZE, SMALL, TEXTS, small_backbone, small_member
from xmodal_kedro.captioning.checkpoint import PackedCaptioner, begin_captioner, open_captioner, write_captioner
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.captioning.ensemble import EnsembleCaptioner
from xmodal_kedro.captioning.transformers_captioner import load_captioner
from xmodal_kedro.config.captioning import CaptionerConfig, CaptionTrainConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.member import AugmentConfig, BackboneConfig
from xmodal_kedro.data.manifest import BrokenArtifactError, read_manifest
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import WEIGHTS, Backbone
from xmodal_kedro.models.checkpoint import write_checkpoint
from xmodal_kedro.models.res2net_gpt import Res2NetGPT
from xmodal_kedro.models.transform import ImageTransform
from xmodal_kedro.models.weights import MissingWeightsError

GREEDY = DecodingConfig(method="greedy", max_steps=12)
PHOTOS = torch.randint(
    0, 256, (5, SIZE + 8, SIZE + 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def config(name: str = "writer", image_encoder: bool = True, **others: Any) -> CaptionerConfig:
    train = CaptionTrainConfig(epochs=1, batch_size=4, lr=1e-3, image_encoder=image_encoder)
    return CaptionerConfig(name=name, member="gpt", train=train, **others)


def shaken(seed: int = 0, backbone: Backbone | None = None) -> Backbone:
    """A small backbone whose captions depend on the image, with weights that its seed alone would not give."""
    backbone = backbone or small_backbone("res2net_gpt")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    """A checkpoint with a normalisation of its own, and the backbone that was written."""
    directory, backbone = tmp_path_factory.mktemp("captioner") / "one", shaken()
    ours = config(mean=[0.5, 0.25, 0.125], std=[0.25, 0.5, 0.75])
    begin_captioner(backbone, ours)
    made_by = write_captioner(directory, backbone, ours, {"cider_d": 0.5}, {"captions": "c" * 64})
    assert made_by == read_manifest(directory, "captioner", hashes=True)["fingerprints"]
    assert {name: len(value) for name, value in made_by.items()} == {"captions": 64, "weights": 64, "transform": 64}
    return directory, backbone.eval()


# --- begin


def test_all_that_writes_captions_trains_whatever_was_frozen_for_the_member() -> None:
    backbone = build(SMALL["res2net_gpt"].model_copy(update={"unlocked_groups": {"image": 0, "text": 0}}), 0, TEXTS)
    captioner = begin_captioner(backbone, config()).captioner
    assert all(parameter.requires_grad for parameter in captioner.parameters())
    others = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in others} == {id(parameter) for parameter in captioner.parameters()}
    ids = backbone.tokenize(TEXTS[:2])["input_ids"]
    captioner(torch.randn(2, 3, SIZE, SIZE), ids).square().mean().backward()
    assert not [name for name, parameter in captioner.named_parameters() if parameter.grad is None]


def test_an_image_encoder_that_does_not_train_stays_in_eval() -> None:
    captioner = begin_captioner(shaken(), config(image_encoder=False))
    trains = {name.partition(".")[0] for name, p in captioner.captioner.named_parameters() if p.requires_grad}
    assert trains == {"gpt"}
    for part in (captioner, captioner.captioner):
        part.train()
        assert not any(module.training for module in captioner.captioner.image_encoder.modules())
        assert captioner.captioner.gpt.training
    before = {name: tensor.clone() for name, tensor in captioner.captioner.image_encoder.state_dict().items()}
    captioner.captioner.encode(captioner.transform(PHOTOS))
    after = captioner.captioner.image_encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())  # no batch statistics
    assert begin_captioner(shaken(), config()).train().captioner.image_encoder.training
    assert not captioner.eval().captioner.gpt.training


def test_pixels_are_normalised_as_the_config_says_or_as_for_the_member() -> None:
    ours = begin_captioner(shaken(), config(mean=[0.1, 0.2, 0.3]))
    assert ours.transform == ImageTransform(SIZE, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert begin_captioner(shaken(), config()).transform == ImageTransform(SIZE, (0.5,) * 3, (0.5,) * 3)
    augment = AugmentConfig(flip=0.5)
    assert ours.image_transform(train=True, augment=augment) == ImageTransform(
        SIZE, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), augment
    )
    assert ours.image_transform(train=False, augment=augment) == ours.transform


@pytest.mark.parametrize("name", ["open_clip", "blip"])
def test_a_member_of_another_family_is_named_with_the_families_that_write(name: str) -> None:
    message = rf"writer.member: 'gpt' has a backbone '{name}', which does not write captions. .*: res2net_gpt$"
    with pytest.raises(ValueError, match=message):
        begin_captioner(small_backbone(name), config())
    with pytest.raises(NotImplementedError, match=f"the backbone '{name}' does not write captions"):
        small_backbone(name).captioner()


# --- write and open


def test_tensors_come_back_to_the_bit(written: tuple[Path, Backbone]) -> None:
    directory, backbone = written
    tensors = load_file(directory / WEIGHTS)
    assert tensors.keys() == backbone.model.state_dict().keys()
    opened = open_captioner(directory, Path("elsewhere"))
    as_member: Any = Res2NetGPT.from_pretrained(directory)
    parts = {"image": opened.captioner.image_encoder, "text": opened.captioner.gpt}
    for name, tensor in backbone.model.state_dict().items():
        part, _, rest = name.partition(".")
        assert torch.equal(tensors[name], tensor)
        assert torch.equal(as_member.model.state_dict()[name], tensor)
        if part in parts:
            assert torch.equal(parts[part].state_dict()[rest], tensor)
    assert opened.name == "writer"
    assert opened.vocabulary == as_member.characters
    assert opened.transform == as_member.image_transform(train=False)
    assert (as_member.mean, as_member.std) == ((0.5, 0.25, 0.125), (0.25, 0.5, 0.75))
    assert not opened.captioner.training


def test_the_directory_alone_writes_the_same_captions(written: tuple[Path, Backbone]) -> None:
    directory, backbone = written
    mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.25, 0.5, 0.75])
    cut = nn.functional.interpolate(PHOTOS.permute(0, 3, 1, 2).float(), SIZE, mode="bicubic", antialias=True)
    pixels = (cut.clamp(0, 255).permute(0, 2, 3, 1) / 255 - mean) / std
    vectors = backbone.encode_image(pixels.permute(0, 3, 1, 2))
    captioner: Any = backbone.captioner()
    expected = [caption.text for caption in decode(captioner, vectors, GREEDY)]
    assert len(set(expected)) > 1  # photos matter
    opened = open_captioner(Path("one"), directory.parent)
    assert [caption.text for caption in decode(opened, PHOTOS, GREEDY)] == expected


@pytest.mark.parametrize("decoding", [GREEDY, DecodingConfig(method="beam", beams=3, max_steps=12)])
def test_packed_photos_are_decoded_alone_and_in_an_ensemble(decoding: DecodingConfig) -> None:
    one, other = (begin_captioner(shaken(seed), config()).eval() for seed in (0, 1))
    alone = decode(one, PHOTOS, decoding)
    assert [row.ids for row in decode(one.captioner, one.transform(PHOTOS), decoding)] == [row.ids for row in alone]
    together = EnsembleCaptioner({"one": one, "other": other}, [1.0, 0.0])
    assert [row.ids for row in decode(together, PHOTOS, decoding)] == [row.ids for row in alone]
    assert [row.ids for row in decode(other, PHOTOS, decoding)] != [row.ids for row in alone]


def test_what_made_it_lies_beside_the_weights(written: tuple[Path, Backbone]) -> None:
    directory, _ = written
    facts = yaml.safe_load((directory / "captioner.yaml").read_text(encoding="utf-8"))
    assert facts.pop("backbone") == "res2net_gpt"
    assert CaptionerConfig.model_validate(facts) == config(mean=[0.5, 0.25, 0.125], std=[0.25, 0.5, 0.75])
    assert (directory / "metrics.json").read_text() == '{\n  "cider_d": 0.5\n}'
    with pytest.raises(FileExistsError, match="is not empty"):
        write_captioner(directory, small_backbone("res2net_gpt"), config(), {}, {})


def test_another_normalisation_is_another_fingerprint(tmp_path: Path) -> None:
    made = []
    for number, mean in enumerate([None, [0.5, 0.5, 0.5], [0.5, 0.5, 0.4]]):
        backbone, ours = small_backbone("res2net_gpt"), config(mean=mean)
        begin_captioner(backbone, ours)
        made.append(write_captioner(tmp_path / str(number), backbone, ours, {}, {}))
    assert made[0] == made[1]
    assert made[0]["transform"] != made[2]["transform"]
    assert made[0]["weights"] == made[2]["weights"]


def test_a_members_checkpoint_is_no_captioner(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "member", small_backbone("res2net_gpt"), small_member("res2net_gpt"), {}, {})
    with pytest.raises(BrokenArtifactError, match=r"member holds checkpoint, not captioner\. .*--pipelines=caption"):
        open_captioner(tmp_path / "member", tmp_path)


def test_a_directory_that_is_not_whole_is_named(written: tuple[Path, Backbone], tmp_path: Path) -> None:
    with pytest.raises(BrokenArtifactError, match=r"nothing has no MANIFEST\.json"):
        open_captioner(tmp_path / "nothing", tmp_path)
    backbone = small_backbone("res2net_gpt")
    write_captioner(tmp_path / "cut", backbone, config(), {}, {})
    (tmp_path / "cut" / WEIGHTS).unlink()
    with pytest.raises(BrokenArtifactError, match=r"weights\.safetensors is missing or cut short"):
        open_captioner(Path("cut"), tmp_path)


# --- weights of transformers


def by_weights(weights: str) -> CaptionerConfig:
    return CaptionerConfig(name="blip", weights=weights)


def decoded(captioner: PackedCaptioner, images: Tensor) -> list[tuple[int, ...]]:
    return [caption.ids for caption in decode(captioner, images, GREEDY)]


def test_a_model_of_transformers_captions_packed_photos(tmp_path: Path) -> None:
    save_blip(tmp_path / "weights" / "blip")
    captioner = open_captioner(by_weights("weights/blip"), tmp_path, "cpu")
    reference = load_captioner(tmp_path / "weights" / "blip")
    assert (captioner.name, captioner.backbone) == ("blip", None)
    assert captioner.vocabulary.tokens == reference.vocabulary.tokens
    expected = [caption.ids for caption in decode(reference, reference.image_transform(PHOTOS), GREEDY)]
    assert decoded(captioner, PHOTOS) == expected
    assert len(set(expected)) > 1


def test_missing_weights_are_named_with_the_key_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingWeightsError, match=rf"blip\.weights: there is no directory {tmp_path}/some/where/else"):
        open_captioner(by_weights("some/where/else"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeightsError, match=r"blip\.weights: .*/empty holds no config\.json, and no preproc"):
        open_captioner(by_weights("empty"), tmp_path)

    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("xmodal_kedro.models.weights._fetched", unreachable)
    with pytest.raises(MissingWeightsError, match=r"blip\.weights: 'owner/name' .*Set blip\.weights to a directory"):
        open_captioner(by_weights("owner/name"), tmp_path)


def test_a_config_of_a_member_has_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captioner 'writer' begins with the member 'gpt'"):
        open_captioner(config(), tmp_path)


def test_a_backbone_reopened_as_a_member_encodes_as_before(written: tuple[Path, Backbone]) -> None:
    directory, backbone = written
    opened = build(BackboneConfig(name="res2net_gpt", weights=str(directory))).eval()
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.equal(opened.encode_text(tokens), backbone.encode_text(tokens))
        photos = backbone.image_transform(train=False)(PHOTOS)
        assert torch.equal(
            opened.encode_image(opened.image_transform(train=False)(PHOTOS)), backbone.encode_image(photos)
        )
