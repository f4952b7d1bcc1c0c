"""What trainings are said to take is what their checkpoints and states do take, on the disk of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.small import SIZE, SMALL, TEXTS, small_member
from xmodal_kedro.captioning.checkpoint import begin_captioner, write_captioner
from xmodal_kedro.config.captioning import CaptionerConfig, CaptionTrainConfig
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig
from xmodal_kedro.data.findings import Report
from xmodal_kedro.data.sizes import Size, Training, captioner_trainings
from xmodal_kedro.data.weight_checks import check_member
from xmodal_kedro.models import build
from xmodal_kedro.models.captioner import caption_loss
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.checkpoint import write_checkpoint
from xmodal_kedro.training.optimiser import make_optimiser
from xmodal_kedro.training.state import TrainingState
from xmodal_kedro.training.steps import Best

IMAGES = ImagesConfig(size=SIZE)


@pytest.fixture
def member(tmp_path: Path) -> MemberConfig:
    """One that can write, whose vocabulary is known and whose tensors are large beside the headers of their files."""
    Characters.learn(TEXTS).write(tmp_path / "words.json")
    text = {"layers": 2, "heads": 2, "width": 128, "block_size": 40}
    architecture = {**(SMALL["res2net_gpt"].architecture or {}), "vocabulary": "words.json", "text_config": text}
    backbone = BackboneConfig(name="res2net_gpt", architecture=architecture)
    return small_member("res2net_gpt").model_copy(update={"backbone": backbone})


def writer(**train: Any) -> CaptionerConfig:
    settings = CaptionTrainConfig(**{"epochs": 1, "batch_size": 4, "lr": 1e-3, **train})
    return CaptionerConfig(name="writer", member="gpt", train=settings)


def on_disk(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.safetensors"))


@pytest.mark.parametrize("image_encoder", [True, False])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_captioner_takes_what_is_said(member: MemberConfig, image_encoder: bool, keep: str, tmp_path: Path) -> None:
    config = writer(image_encoder=image_encoder, keep=keep)
    (said,) = captioner_trainings({"writer": config}, {"gpt": member}, IMAGES, tmp_path)
    assert said.name == "writer"

    backbone = build(member.backbone, 0, TEXTS, root=tmp_path)
    model = begin_captioner(backbone, config).train().captioner
    assert config.train is not None
    optimiser = make_optimiser(model, config.train)
    ids = backbone.tokenize(TEXTS)["input_ids"]
    caption_loss(model(torch.randn(len(ids), 3, SIZE, SIZE), ids), ids).backward()
    optimiser.step()
    best = Best(model, keeps=keep == "best")
    best.offer(1, 0.5)
    TrainingState(tmp_path / "states", "writer", "key").save(model, optimiser, {}, {}, best.weights)
    write_captioner(tmp_path / "checkpoint", backbone, config, {}, {})

    assert said.state == pytest.approx(on_disk(tmp_path / "states"), rel=0.03)
    assert said.checkpoint == pytest.approx(on_disk(tmp_path / "checkpoint"), rel=0.03)
    parameters = [*backbone.parameters(), *(one.grad for one in model.parameters() if one.grad is not None)]
    moments = [value for one in optimiser.state.values() for value in one.values()]
    counted = sum(tensor.nbytes for tensor in (*parameters, *moments, *best.weights.values()))
    assert said.memory(on_gpu=False) == pytest.approx(counted, rel=0.03)
    assert said.memory(on_gpu=True) == said.checkpoint + sum(4 * said.size.trained for _ in best.weights and [0])


def test_captioners_of_one_member_are_told_apart_by_what_trains(member: MemberConfig, tmp_path: Path) -> None:
    configs = [writer(image_encoder=trains) for trains in (False, True, False)]
    captioners = {f"writer{number}": one for number, one in enumerate(configs)}
    first, whole, last = captioner_trainings(captioners, {"gpt": member}, IMAGES, tmp_path)
    assert (first.name, last.name) == ("writer0", "writer2")
    assert first.size == last.size
    assert 0 < first.size.trained < whole.size.trained < whole.size.parameters == first.size.parameters


def test_a_member_with_random_weights_takes_what_is_said(member: MemberConfig, tmp_path: Path) -> None:
    frozen = member.backbone.model_copy(update={"unlocked_groups": {"image": 1, "text": 2}})
    for backbone in (member.backbone, frozen):
        whole = member.model_copy(update={"backbone": backbone})
        size = check_member("gpt", whole, IMAGES, tmp_path, report := Report())
        assert report == Report()
        model = build(backbone, 0, TEXTS, root=tmp_path)
        assert size == Size.of(model)
        directory = tmp_path / f"checkpoint_of_{size.trained}"
        write_checkpoint(directory, model, whole, {}, {})
        assert Training("gpt", size, keeps_best=True).checkpoint == pytest.approx(on_disk(directory), rel=0.03)
    assert 0 < size.trained < size.parameters


def test_of_weights_without_a_model_all_parameters_are_taken_to_train(member: MemberConfig, tmp_path: Path) -> None:
    model = build(member.backbone, 0, TEXTS, root=tmp_path)
    model.save_pretrained(tmp_path / "weights")
    named = member.model_copy(update={"backbone": BackboneConfig(name="res2net_gpt", weights="./weights")})
    held = sum(tensor.numel() for tensor in model.model.state_dict().values())
    assert check_member("gpt", named, IMAGES, tmp_path, Report()) == Size(held, held)
    (said,) = captioner_trainings({"writer": writer(image_encoder=False)}, {"gpt": named}, IMAGES, tmp_path)
    assert said.size == Size(held, held)


def test_what_cannot_be_known_counts_nothing(tmp_path: Path) -> None:
    broken = small_member("res2net_gpt")
    broken = broken.model_copy(update={"backbone": BackboneConfig(name="res2net_gpt", architecture={"image": "none"})})
    others = {"gpt": broken, "blip": small_member("blip")}
    (said,) = captioner_trainings({"writer": writer()}, others, IMAGES, tmp_path)
    assert said.size == Size()
    assert said.state == said.checkpoint == said.memory(on_gpu=False) == 0
    (said,) = captioner_trainings({"writer": writer().model_copy(update={"member": "blip"})}, others, IMAGES, tmp_path)
    assert said.checkpoint > 0  # which cannot write captions, as `check_captioners` says
