"""What captioners and parts of a model begin with is looked for before the first node, and named with its key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.models.small import SMALL
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig, CaptionTrainConfig
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.member import BackboneConfig, MemberConfig, TrainConfig
from xmodal_kedro.config.recipe import Recipe, read_recipe
from xmodal_kedro.data.findings import Report
from xmodal_kedro.data.weight_checks import check_captioners, check_member
from xmodal_kedro.hooks import ProjectHook
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes
from xmodal_kedro.pipelines.caption.pipeline import create_pipeline
from xmodal_kedro.pipelines.predict.pipeline import create_pipeline as predict_pipeline
from xmodal_kedro.pipelines.train.pipeline import create_pipeline as train_pipeline

IMAGES = ImagesConfig(size=32)
CAPTIONING = CaptioningConfig()
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
CAPTIONER_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")


def member(name: str, **architecture: object) -> MemberConfig:
    return MemberConfig(backbone=BackboneConfig(name=name, architecture=architecture), train=TrainConfig(**TRAIN))


def from_member(name: str) -> CaptionerConfig:
    return CaptionerConfig(member=name, train=CaptionTrainConfig(**TRAIN))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of an image model, of a GPT and of a captioner; an empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    project = tmp_path / "project"
    for file in ("image/model.safetensors", "gpt/model.safetensors", *(f"blip/{name}" for name in CAPTIONER_FILES)):
        (project / "raw" / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": np.zeros(4, np.float32)}, project / "raw" / file)
    for file in ("raw/gpt/vocab.json", "raw/blip/config.json"):
        (project / file).write_text("{}")
    Characters.learn(["甲乙"]).write(project / "raw/words.json")
    return project


def parts(project: Path, **architecture: object) -> list[str]:
    report = Report()
    whole = member("res2net_gpt", **{**(SMALL["res2net_gpt"].architecture or {}), **architecture})
    check_member("gpt", whole, IMAGES, project, report)
    return report.problems


def captioners(
    project: Path, captioner: CaptionerConfig, captioning: CaptioningConfig = CAPTIONING, **members: MemberConfig
) -> list[str]:
    return check_captioners({"writer": captioner}, members, IMAGES, project, captioning).problems


# --- parts of a model


def test_parts_that_are_there_raise_nothing(project: Path) -> None:
    assert parts(project, image_weights="raw/image", text_weights="raw/gpt") == []
    assert parts(project, image_weights="raw/image/model.safetensors", vocabulary="raw/words.json") == []
    assert parts(project, image_weights=None, vocabulary=str(project / "raw/words.json")) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "image_weights",
            "raw/imag",
            "there is no directory {}/raw/imag (did you mean 'image'?). Put there: weights.s",
        ),
        ("image_weights", "raw", "{}/raw holds no weights.safetensors or model.safetensors or pytorch_model.bin."),
        ("image_weights", "timm/image", "'timm/image' is not in the local cache"),
        ("text_weights", "raw/gptt", "there is no directory {}/raw/gptt (did you mean 'gpt'?). Put there: vocab.json"),
        ("text_weights", "raw/image", "{}/raw/image holds no vocab.json."),
        ("text_weights", "raw/gpt/model.safetensors", "{}/raw/gpt/model.safetensors is a file. Give its directory, wi"),
        ("text_weights", "owner/gpt", "'owner/gpt' is not in the local cache"),
        ("vocabulary", "raw/word.json", "there is no file {}/raw/word.json (did you mean 'words.json'?). Put it there"),
        ("vocabulary", "raw", "{}/raw is a directory, and one file is wanted. Correct the key."),
        ("vocabulary", "nowhere/words.json", "there is no file {}/nowhere/words.json. Put it there"),
    ],
)
def test_a_part_that_is_not_there_is_named(project: Path, key: str, value: str, message: str) -> None:
    (problem,) = parts(project, **{key: value})
    assert problem.startswith(f"gpt.backbone.architecture.{key}: " + message.format(project))


@pytest.mark.parametrize("named", ["raw/image", "raw/image/model.safetensors"])
def test_a_part_that_was_cut_short_is_named(project: Path, named: str) -> None:
    file = project / "raw/image/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = parts(project, image_weights=named)
    assert problem.startswith(f"gpt.backbone.architecture.image_weights: {file} is cut short")


@pytest.mark.parametrize(
    ("name", "section"), [("res2net_gpt", ""), ("open_clip", "vision_cfg"), ("blip", "vision_config")]
)
def test_images_that_are_packed_too_small_for_random_weights_are_named(project: Path, name: str, section: str) -> None:
    architecture = SMALL[name].architecture or {}
    key = f"{section}.image_size".removeprefix(".")
    for size, problems in [
        (
            31,
            [
                f"small.backbone.architecture.{key}: this model wants images of 32 px, images.size is 31, and images "
                "are not scaled up. Set images.size to at least 32."
            ],
        ),
        (32, []),
        (73, []),
    ]:
        check_member("small", member(name, **architecture), ImagesConfig(size=size), project, report := Report())
        assert report == Report(problems)


@pytest.mark.parametrize(("name", "size"), [("blip", 384), ("open_clip", 240)])
def test_so_are_those_whose_size_the_config_does_not_say(project: Path, name: str, size: int) -> None:
    whole = member(name, **({"model_name": "ViT-B-16-plus-240"} if name == "open_clip" else {}))
    check_member("small", whole, ImagesConfig(size=size - 1), project, report := Report())
    assert report.problems == [
        f"small.backbone.architecture: this model wants images of {size} px, images.size is {size - 1}, and images are "
        f"not scaled up. Set images.size to at least {size}."
    ]
    check_member("small", whole, ImagesConfig(size=size), project, report := Report())
    assert report == Report()


def test_a_missing_file_is_said_once_and_with_all_else_that_is_wrong(project: Path) -> None:
    problems = parts(project, vocabulary="raw/word.json", image_weights="raw/imag", text_confg={})
    assert [problem.partition(" ")[0] for problem in problems] == [
        "gpt.backbone.architecture.image_weights:",
        "gpt.backbone.architecture.vocabulary:",
        "gpt.backbone.architecture",
    ]
    assert "text_confg: Extra inputs" in problems[-1]


# --- captioners


def test_captioners_that_can_begin_raise_nothing(project: Path) -> None:
    assert captioners(project, from_member("gpt"), gpt=member("res2net_gpt")) == []
    assert captioners(project, CaptionerConfig(weights="raw/blip")) == []


def test_a_member_that_does_not_write_captions_is_named(project: Path) -> None:
    (problem,) = captioners(project, from_member("cn"), cn=member("chinese_clip"))
    assert problem == (
        "writer.member: 'cn' has a backbone 'chinese_clip', which does not write captions. Name a member with one that "
        "does: res2net_gpt."
    )
    (problem,) = captioners(project, from_member("typo"), typo=member("res2net_gtp"))
    assert problem.startswith("typo: backbone.name 'res2net_gtp' is unknown")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("raw/bilp", "there is no directory {}/raw/bilp (did you mean 'blip'?). Put there: config.json; preprocessor_"),
        ("raw/gpt", "{}/raw/gpt holds no config.json, and no preprocessor_config.json or processor_config.json."),
        ("raw/words.json", "{}/raw/words.json is a file. Give its directory, with: config.json; "),
        ("owner/blip", "'owner/blip' is not in the local cache"),
    ],
)
def test_weights_that_are_not_there_are_named(project: Path, weights: str, message: str) -> None:
    (problem,) = captioners(project, CaptionerConfig(weights=weights))
    assert problem.startswith("writer.weights: " + message.format(project))


def test_a_hub_id_that_can_be_fetched_is_a_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    report = check_captioners({"writer": CaptionerConfig(weights="owner/blip")}, {}, IMAGES, project, CAPTIONING)
    assert report.problems == []
    assert report.warnings[0].startswith("writer.weights: 'owner/blip' is not in the local cache, so it will be down")


@pytest.mark.parametrize("section", ["vision_config", "encoder"])
def test_images_that_are_packed_too_small_for_a_captioner_are_named(project: Path, section: str) -> None:
    (project / "raw/blip/config.json").write_text(json.dumps({section: {"image_size": 33}}))
    (problem,) = captioners(project, CaptionerConfig(weights="raw/blip"))
    assert problem.startswith("writer.weights: this model wants images of 33 px, images.size is 32")
    (project / "raw/blip/config.json").write_text(json.dumps({section: {"image_size": 32}}))
    assert captioners(project, CaptionerConfig(weights="raw/blip")) == []


@pytest.mark.parametrize(("sizes", "positions"), [({}, 100), ({"text_config": {"block_size": 40}}, 40)])
def test_captions_that_do_not_fit_the_positions_of_a_gpt_are_named(
    project: Path, sizes: dict[str, Any], positions: int
) -> None:
    longest, longer = (
        CaptioningConfig(decoding=DecodingConfig(max_steps=steps)) for steps in (positions, positions + 1)
    )
    assert captioners(project, from_member("gpt"), longest, gpt=member("res2net_gpt", **sizes)) == []
    assert captioners(project, from_member("gpt"), longer, gpt=member("res2net_gpt", **sizes)) == [
        f"captioning.decoding.max_steps: it is {positions + 1}, and the GPT of 'gpt' has {positions} positions. Lower "
        f"it to {positions}, or raise gpt.backbone.architecture.text_config.block_size."
    ]
    trained = MemberConfig(backbone=BackboneConfig(name="res2net_gpt", weights="raw/gpt"), train=TrainConfig(**TRAIN))
    assert captioners(project, from_member("gpt"), longer, gpt=trained) == []


def test_the_positions_are_those_that_decoding_takes() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTSizes(vocab_size=5, layers=1, heads=1, width=4, block_size=3))
    captioner = Captioner(torch.nn.Identity(), gpt, Characters.learn(["甲"], 5)).eval()
    vectors = torch.zeros(1, 4)
    torch.nn.init.constant_(gpt.head.bias[captioner.vocabulary.end], -1e9)  # so that it never ends
    assert len(decode(captioner, vectors, DecodingConfig(max_steps=3))[0].ids) == 3
    with pytest.raises(ValueError, match=r"\b3\b"):
        decode(captioner, vectors, DecodingConfig(max_steps=4))


# --- the run


def recipe(**parameters: object) -> Recipe:
    source = {"split": "train", "format": "table", "file": "pairs.csv", "images": "images"}
    small = {"backbone": {"name": "chinese_clip", "architecture": {}}, "train": TRAIN}
    sources = [source, {**source, "split": "val"}]
    shared = {"data": {"root": "raw", "sources": sources}, "images": {"size": 32}, "small": small}
    return read_recipe({**shared, "member_names": ["small"], **parameters})


def begin_run(project: Path, recipe: Recipe, pipeline: Any) -> None:
    hook = ProjectHook()
    hook.recipe, hook.project = recipe, project
    hook.before_pipeline_run({}, pipeline)


def test_a_run_checks_the_captioners_that_it_begins_and_says_all_at_once(project: Path) -> None:
    names = {"writer": {"member": "small", "train": TRAIN}, "bilp": {"weights": "raw/bilp"}}
    weights = {"ensemble": {"weights": {"writer": 1.0, "bilp": 0.0}}}
    both = recipe(captioner_names=list(names), captioning=weights, **names)
    pipeline = create_pipeline(names)
    with pytest.raises(click.ClickException) as failure:
        begin_run(project, both, pipeline)
    assert failure.value.message.count("\n- ") == 2
    assert "\n- writer.member: 'small' has a backbone" in failure.value.message
    assert "\n- bilp.weights: there is no directory" in failure.value.message
    with pytest.raises(click.ClickException) as failure:
        begin_run(project, both, pipeline.only_nodes_with_namespaces(["bilp"]))
    assert failure.value.message.count("\n- ") == 1
    begin_run(project, both, pipeline.only_nodes("writer.decode_captions"))  # from a checkpoint that is there


def test_a_run_counts_what_it_trains_and_not_what_lies_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = SMALL["res2net_gpt"].model_dump(include={"name", "architecture"})
    writer = {"member": "gpt", "train": TRAIN}
    gpt = {"backbone": backbone, "train": TRAIN}
    both = recipe(member_names=["small", "gpt"], gpt=gpt, captioner_names=["writer"], writer=writer)
    second = create_pipeline({"writer": writer})
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    for pipeline, checkpoints in ((second, 1), (train_pipeline("gpt") + second, 2), (train_pipeline("gpt"), 1)):
        with pytest.raises(click.ClickException, match=rf"disk: 0 packed images and {checkpoints} checkpoints, and "):
            begin_run(project, both, pipeline)
    begin_run(project, both, second.only_nodes("writer.decode_captions"))  # from a checkpoint that is there


def test_a_run_checks_how_captions_are_judged_but_not_where_none_is_judged(project: Path) -> None:
    blip = {"captioner_names": ["blip"], "blip": {"weights": "raw/blip"}, "captioning": {"split": "test"}}
    with pytest.raises(click.ClickException, match=r"captioning\.split: no source .* has images of test"):
        begin_run(project, recipe(**blip), create_pipeline({"blip": blip["blip"]}))
    new = predict_pipeline([], captioners={"blip": blip["blip"]}, ranking=False)
    begin_run(project, recipe(**blip), new.only_nodes("caption_new_data", "write_new_captions"))


def test_a_run_tries_the_models_that_it_trains_and_says_all_at_once(project: Path) -> None:
    faults = {"first": {"vision_cfg": {"widht": 8}}, "second": {"text_cfg": {"heads": 3}}, "third": {}}
    architecture = SMALL["open_clip"].architecture or {}
    members = {
        name: {
            "backbone": {
                "name": "open_clip",
                "architecture": {**architecture, **{k: architecture[k] | v for k, v in fault.items()}},
            },
            "train": TRAIN,
        }
        for name, fault in faults.items()
    }
    whole = recipe(member_names=["small", *members], **members)
    with pytest.raises(click.ClickException) as failure:
        begin_run(project, whole, train_pipeline("first") + train_pipeline("second") + train_pipeline("third"))
    assert failure.value.message.count("\n- ") == 2
    assert "\n- first.backbone.architecture is no model config of open_clip: CLIPVision" in failure.value.message
    assert "\n- second.backbone.architecture is no model config of open_clip: embed_dim" in failure.value.message
    begin_run(project, whole, train_pipeline("third"))


def test_a_run_without_captions_asks_for_no_captioner(project: Path) -> None:
    without = recipe(captioner_names=["bilp"], bilp={"weights": "raw/bilp"})
    nothing: Any = SimpleNamespace(nodes=[], inputs=set, all_outputs=set)
    begin_run(project, without, nothing)


def test_what_several_checks_find_is_said_once() -> None:
    merged = Report.merged([Report(["a", "b"], ["w"]), Report(["b", "c"], ["w"]), Report()])
    assert merged == Report(["a", "b", "c"], ["w"])
