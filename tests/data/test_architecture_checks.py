"""What a recipe says of a model with random weights is tried before the first node, without its weights and the hub."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch
from huggingface_hub import constants

from tests.models.small import SIZE, SMALL, TEXTS
from xmodal_kedro.config.member import BackboneConfig, LoraConfig
from xmodal_kedro.data.architecture_checks import check_architecture
from xmodal_kedro.data.findings import Report
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError


def changed(name: str, key: str, value: object) -> BackboneConfig:
    """A small model with one value of its architecture, by a dotted key, set to another."""
    config = copy.deepcopy(SMALL[name])
    *sections, last = key.split(".")
    section: Any = config.architecture
    for part in sections:
        section = section[part]
    section[last] = value
    return config


def problems(config: BackboneConfig, project: Path = Path(), refused: tuple[str, ...] = ()) -> list[str]:
    report = Report()
    model = check_architecture("small", config, project, refused, report)
    assert (model is None) == bool(report.problems)
    assert report.warnings == []
    return report.problems


@pytest.mark.parametrize("name", sorted(SMALL))
def test_what_can_be_built_raises_nothing_and_tells_its_shapes(name: str) -> None:
    report = Report()
    model = check_architecture("small", SMALL[name], Path(), (), report)
    assert model is not None
    assert model.image_size == SIZE
    assert all(parameter.is_meta for parameter in model.parameters())
    assert report == Report()


FAULTS: list[tuple[str, str, object, str]] = [
    ("open_clip", "vision_cfg.widht", 16, r"'widht'"),
    ("open_clip", "text_cfg.layerz", 3, r"'layerz'"),
    ("open_clip", "embed_dimm", 16, r"'embed_dimm'"),
    ("open_clip", "text_cfg.heads", 3, r"embed_dim must be divisible by num_heads"),
    ("open_clip", "vision_cfg.head_width", 0, r": 'open_clip' can build no model of these sizes \(ZeroDivisionError"),
    ("open_clip", "vision_cfg.image_size", [32, 64], r"vision_cfg.image_size is 32 x 64"),
    ("open_clip", "text_cfg.pool_type", "lasst", r"is no model config of open_clip"),
    ("open_clip_timm", "vision_cfg.timm_model_name", "test_resnett", r"Unknown model \(test_resnett\)"),
    ("chinese_clip", "text_config.layerz", 3, r": ChineseCLIPConfig knows no text_config.layerz"),
    ("chinese_clip", "vision_config.num_attention_heads", 3, r"\(16\) is not a multiple of .* heads \(3\)"),
    ("chinese_clip", "text_config.hidden_act", "gelux", r"can build no model of these sizes \(KeyError: 'gelux'\)"),
    ("chinese_clip", "vocabulary", "nowhere/vocab.txt", r"\.vocabulary: there is no file .*nowhere/vocab.txt"),
    ("blip", "vision_confg", {}, r": BlipConfig knows no vision_confg"),
    ("blip", "text_config.num_attention_heads", 3, r"\(16\) is not a multiple of .* heads \(3\)"),
    ("blip", "text_config.hidden_size", "a", r"'hidden_size' expected int, got str"),
    ("resnet_roberta", "image.widht", 8, r" of resnet_roberta: image.widht: Extra inputs"),
    ("resnet_roberta", "text_config.layerz", 3, r"\.text_config: RobertaConfig knows no layerz"),
    ("resnet_roberta", "text_config.num_attention_heads", 3, r"\(16\) is not a multiple of .* heads \(3\)"),
    ("resnet_roberta", "text_config.vocab_size", 100, r"\.text_config.vocab_size is 100: bytes and special tokens"),
    ("res2net_gpt", "text_config.layerz", 3, r"\.text_config of res2net_gpt: layerz: Extra inputs"),
    ("res2net_gpt", "text_config.heads", 3, r"width 16 cannot be shared by 3 heads"),
    ("res2net_gpt", "image", "res2next5", r"\.image: timm has no model 'res2next5'; similar are res2next50"),
    ("res2net_gpt", "image_weights", 3, r"image_weights: Input should be a valid string"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), FAULTS)
def test_what_the_run_would_say_later_is_said_by_the_member_and_its_key(
    name: str, key: str, value: object, message: str
) -> None:
    config = changed(name, key, value)
    with pytest.raises(ArchitectureError, match=message) as later:
        build(config, texts=TEXTS)
    (problem,) = problems(config)
    assert problem.startswith("small.backbone.architecture")
    assert problem.endswith(".")
    assert " ".join(str(later.value).split()).rstrip(".: ") in problem.removeprefix("small.")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("chinese_clip", {"context": 1000}, "small.backbone.context is 1000: this model allows 52 tokens at most."),
        ("resnet_roberta", {"unlocked_groups": {"text": 9}}, "small.backbone.unlocked_groups.text is 9: this text to"),
        ("open_clip_resnet", {"grad_checkpointing": True}, "small.backbone.grad_checkpointing: 'open_clip' cannot do"),
        ("open_clip_resnet", {"lora": LoraConfig(rank=2)}, "small.backbone.lora.towers: the image tower of this model"),
    ],
)
def test_what_else_the_recipe_asks_of_the_model_is_tried(name: str, changes: dict[str, Any], message: str) -> None:
    (problem,) = problems(SMALL[name].model_copy(update=changes))
    assert problem.startswith(message)


def test_neither_weights_nor_an_architecture_is_a_problem_of_its_own() -> None:
    (problem,) = problems(BackboneConfig(name="blip"))
    assert problem.startswith("small.backbone.architecture: backbone 'blip' needs either weights")


def test_a_key_that_is_known_to_be_wrong_is_left_out() -> None:
    config = changed("res2net_gpt", "vocabulary", "nowhere.json")
    assert problems(config, refused=("vocabulary",)) == []
    (problem,) = problems(config)
    assert problem.startswith("small.backbone.architecture.vocabulary of res2net_gpt: there is no vocabulary /")


def test_paths_start_from_the_project(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text('{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "a": 5}')
    (problem,) = problems(changed("res2net_gpt", "vocabulary", "words.json"), tmp_path)
    assert f"{tmp_path}/words.json is no vocabulary of characters" in problem


# --- what cannot be known


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The hosts that were looked for; there is no cache, and nothing forbids to fetch."""
    hosts: list[str] = []

    def look(host: str, *more: object, **options: object) -> None:
        hosts.append(host)
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hosts


def of_the_hub(text: dict[str, Any] | None = None, **vision: object) -> BackboneConfig:
    """A model of open_clip whose text tower is one of transformers, described by the hub alone."""
    named = {"hf_model_name": "owner/roberta", "hf_tokenizer_name": "owner/roberta", "hf_proj_type": "mlp"}
    architecture = copy.deepcopy(SMALL["open_clip"].architecture or {})
    architecture["text_cfg"] = {
        "context_length": 40,
        "tokenizer_kwargs": {"strip_sep_token": True},
        **named,
        **(text or {}),
    }
    architecture["vision_cfg"] |= vision
    return BackboneConfig(name="open_clip", architecture=architecture)


def with_decoder(config: BackboneConfig) -> BackboneConfig:
    """The same with the part of CoCa that writes."""
    decoder = {"multimodal_cfg": {"width": 8, "heads": 2, "layers": 1, "context_length": 40, "vocab_size": 49408}}
    return config.model_copy(update={"architecture": {**(config.architecture or {}), **decoder}})


@pytest.mark.parametrize(
    "config",
    [
        of_the_hub(),
        of_the_hub().model_copy(update={"unlocked_groups": {"text": 30}}),
        of_the_hub().model_copy(update={"lora": LoraConfig(rank=2, dropout=0.1, towers="text")}),
        with_decoder(of_the_hub()),
        BackboneConfig(name="open_clip", architecture={"model_name": "roberta-ViT-B-32"}),
        BackboneConfig(name="open_clip", architecture={"model_name": "ViT-B-16-SigLIP"}),
        changed("res2net_gpt", "image_weights", "owner/image"),
        changed("res2net_gpt", "text_weights", "owner/gpt"),
    ],
)
def test_what_only_the_hub_knows_is_neither_fetched_nor_a_problem(config: BackboneConfig, asked: list[str]) -> None:
    assert problems(config) == []
    assert asked == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (of_the_hub(widht=16), "'widht'"),
        (of_the_hub({"hf_modell_name": "owner/bert"}), "'hf_modell_name'"),
        (of_the_hub().model_copy(update={"unlocked_groups": {"image": 30}}), "unlocked_groups.image is 30"),
        (of_the_hub().model_copy(update={"context": 41}), "context is 41: this model allows 40 tokens"),
        (
            BackboneConfig(name="open_clip", architecture={"model_name": "roberta-ViT-B-33"}),
            "small.backbone.architecture: open_clip has no 'roberta-ViT-B-33'; similar are roberta-ViT-B-32",
        ),
    ],
)
def test_what_stands_beside_a_text_tower_of_the_hub_is_checked(
    config: BackboneConfig, message: str, asked: list[str]
) -> None:
    (problem,) = problems(config)
    assert message in problem
    assert asked == []


def test_a_text_tower_that_lies_in_a_directory_is_looked_at(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "robertaa"}')
    here = str(tmp_path)
    (problem,) = problems(of_the_hub({"hf_model_name": here, "hf_tokenizer_name": here}))
    assert "model type `robertaa`" in problem
    assert asked == []


def test_parts_with_weights_of_their_own_must_go_together(asked: list[str]) -> None:
    config = changed("res2net_gpt", "text_weights", "owner/gpt")
    config = config.model_copy(update={"architecture": {**(config.architecture or {}), "vocabulary": "words.json"}})
    (problem,) = problems(config)
    assert problem.startswith("small.backbone.architecture.vocabulary: text_weights brings its own vocabulary")


@pytest.mark.parametrize(
    "question",
    [
        lambda tensor: tensor[0].item(),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.unique(),
        lambda tensor: tensor.nonzero(),
        lambda tensor: tensor.cpu(),
    ],
)
def test_a_model_that_looks_at_its_numbers_is_left_to_the_run(
    question: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def looking(*given: Any, **more: Any) -> Any:
        model = create(*given, **more)
        question(next(model.parameters()).flatten()[:2].detach())
        return model

    monkeypatch.setattr(timm, "create_model", looking)
    report = Report()
    assert check_architecture("small", SMALL["res2net_gpt"], Path(), (), report) is None
    assert report == Report()


# --- what it costs


def test_a_model_of_any_size_takes_next_to_no_memory() -> None:
    huge = {"layers": 100, "heads": 100, "width": 10_000}  # half a terabyte
    before = psutil.Process().memory_info().rss
    assert problems(changed("res2net_gpt", "text_config", huge)) == []
    assert psutil.Process().memory_info().rss - before < 1 << 30


def test_the_run_goes_on_as_if_nothing_had_been_built() -> None:
    state = torch.random.get_rng_state()
    problems(SMALL["open_clip"])
    problems(changed("open_clip", "text_cfg.heads", 3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_device() == torch.device("cpu")
