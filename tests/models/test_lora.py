"""LoRA is W + alpha / rank * B A on query, key and value of every layer, in every family, or an error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertTokenizer, ChineseCLIPModel

from tests.models.small import SIZE, SMALL, TEXTS, small_member
from xmodal_kedro.config.member import BackboneConfig, LoraConfig, LossConfig
from xmodal_kedro.models import build, lora
from xmodal_kedro.models.backbone import Backbone, Batch, TrainState
from xmodal_kedro.models.checkpoint import read_checkpoint, write_checkpoint
from xmodal_kedro.models.lora import LoraError, add_lora, merged_state
from xmodal_kedro.models.open_clip import OpenClip
from xmodal_kedro.models.vocabulary import learn_vocabulary

CONFIG = LoraConfig(rank=3, alpha=6.0)
STATE = TrainState(step=0, steps=1, steps_per_epoch=1, loss=LossConfig())


def _changed(name: str, part: str, settings: dict[str, Any]) -> BackboneConfig:
    architecture = dict(SMALL[name].architecture or {})
    return BackboneConfig(name=SMALL[name].name, architecture={**architecture, part: settings})


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BackboneConfig]:
    """Every kind of tower that can be adapted."""
    bert = tmp_path_factory.mktemp("bert")
    vocabulary = learn_vocabulary(TEXTS, 300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertConfig(vocab_size=len(vocabulary), **sizes).save_pretrained(bert)
    BertTokenizer({token: row for row, token in enumerate(vocabulary)}).save_pretrained(bert)
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "context_length": 40, "hf_proj_type": "linear"}
    timm = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    qk_norm = {"image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8, "qk_norm": True}
    return {
        **{name: SMALL[name] for name in ("open_clip", "open_clip_custom_text", "chinese_clip")},
        "blip": SMALL["blip"],
        "open_clip_hf": _changed("open_clip", "text_cfg", text),
        "open_clip_vit_of_timm": _changed("open_clip", "vision_cfg", timm),
        "open_clip_own_attention": _changed("open_clip", "vision_cfg", qk_norm),
    }


LAYERS = {  # image, text
    "open_clip": (3, 2),
    "open_clip_custom_text": (1, 2),
    "chinese_clip": (3, 2),
    "open_clip_hf": (3, 2),
    "open_clip_vit_of_timm": (6, 2),
    "open_clip_own_attention": (2, 2),
    "blip": (3, 2),
}
NAMES = list(LAYERS)


def plain(config: BackboneConfig) -> Backbone:
    return build(config, 0, TEXTS).eval()


def adapted(config: BackboneConfig, **settings: Any) -> Backbone:
    """With B at random, so that the adapters count."""
    backbone = plain(config)
    add_lora(backbone, CONFIG.model_copy(update=settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return backbone


def features(backbone: Backbone) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(3, 3, *(backbone.image_size,) * 2, generator=torch.Generator().manual_seed(0))
    return backbone.encode_image(pixels), backbone.encode_text(backbone.tokenize(TEXTS))


def updates(backbone: Backbone) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """By name of the adapted matrix, the leaves A and B of its blocks, read from the parameters alone."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in backbone.model.named_parameters():
        side = 0 if "lora_A" in name else 1 if "lora_B" in name else None
        if side is None:
            continue
        if ".parametrizations." in name:
            path, _, rest = name.partition(".parametrizations.")
            found.setdefault(f"{path}.{rest.split('.')[0]}", ([], []))[side].extend(parameter.detach().clone())
        else:
            found.setdefault(f"{name.split('.lora_')[0]}.weight", ([], []))[side].append(parameter.detach().clone())
    return found


def by_formula(config: BackboneConfig, pairs: dict[str, tuple[list[Tensor], list[Tensor]]]) -> Backbone:
    """A plain model whose matrices are W + alpha / rank * B A, with gradients down to A and B."""
    backbone = plain(config).requires_grad_(False)
    for name, (lows, highs) in pairs.items():
        path, _, matrix = name.rpartition(".")
        module = backbone.model.get_submodule(path)
        weight = getattr(module, matrix).detach()
        update = [CONFIG.alpha / CONFIG.rank * high @ low for low, high in zip(lows, highs, strict=True)]
        delattr(module, matrix)
        setattr(module, matrix, weight + torch.cat(update))
    return backbone


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_three_per_layer(configs: dict[str, BackboneConfig], name: str) -> None:
    backbone = plain(configs[name])
    counts = add_lora(backbone, CONFIG)
    assert counts == dict(zip(("image", "text"), (3 * layers for layers in LAYERS[name]), strict=True))
    matrices = updates(backbone)
    assert sum(len(lows) for lows, _ in matrices.values()) == sum(counts.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_only_the_adapters_of_the_chosen_tower_train(configs: dict[str, BackboneConfig], name: str, tower: Any) -> None:
    backbone = adapted(configs[name], towers=tower)
    trainable = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in key for key in trainable)
    inside = {id(parameter) for group in backbone.layer_groups(tower) for parameter in group}
    assert all(id(p) in inside for p in backbone.parameters() if p.requires_grad)
    assert not backbone.logit_scale.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_before_the_first_step(configs: dict[str, BackboneConfig], name: str) -> None:
    backbone = plain(configs[name])
    before = features(backbone)
    add_lora(backbone, CONFIG)
    for expected, actual in zip(before, features(backbone), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_gradients_are_those_of_the_formula(configs: dict[str, BackboneConfig], name: str) -> None:
    backbone = adapted(configs[name])
    pairs = updates(backbone)
    leaves = [leaf.requires_grad_() for lows, highs in pairs.values() for leaf in (*lows, *highs)]
    reference = by_formula(configs[name], pairs)
    size = (backbone.image_size,) * 2
    batch = Batch(
        torch.randn(len(TEXTS), 3, *size, generator=torch.Generator().manual_seed(3)), backbone.tokenize(TEXTS)
    )
    losses = [Backbone.training_step(model, batch, STATE)["loss"] for model in (backbone, reference)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    unchanged = features(plain(configs[name]))
    for actual, expected, start in zip(features(backbone), features(reference), unchanged, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        assert (actual - start).abs().max() > 1e-3
    losses[0].backward()
    gradients: dict[str, tuple[list[Tensor], list[Tensor]]] = {key: ([], []) for key in pairs}
    for key, parameter in backbone.model.named_parameters():
        if "lora_" in key:
            assert parameter.grad is not None
            path, inside, rest = key.partition(".parametrizations.")
            side = 0 if "lora_A" in key else 1
            if inside:
                gradients[f"{path}.{rest.split('.')[0]}"][side].extend(parameter.grad)
            else:
                gradients[f"{key.split('.lora_')[0]}.weight"][side].append(parameter.grad)
    actual_gradients = [leaf for lows, highs in gradients.values() for leaf in (*lows, *highs)]
    for ours, expected in zip(actual_gradients, torch.autograd.grad(losses[1], leaves), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_merged_weights_and_the_adapter(
    configs: dict[str, BackboneConfig], name: str, tmp_path: Path
) -> None:
    backbone = adapted(configs[name])
    config = configs[name].model_copy(update={"lora": CONFIG})
    member = small_member("open_clip").model_copy(update={"backbone": config})
    write_checkpoint(tmp_path / "checkpoint", backbone, member, {}, {})
    written = load_file(tmp_path / "checkpoint" / "weights.safetensors")
    assert set(written) == set(plain(configs[name]).model.state_dict())
    assert {key: value.tolist() for key, value in merged_state(backbone.model).items()} == {
        key: value.tolist() for key, value in written.items()
    }
    loaded = read_checkpoint(tmp_path / "checkpoint").backbone
    assert not any("lora" in key for key in loaded.state_dict())
    with torch.no_grad():
        for unmerged, merged in zip(features(backbone), features(loaded), strict=True):
            torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)
    backbone.save_pretrained(tmp_path / "library")
    again = type(backbone).from_pretrained(tmp_path / "library").eval()
    with torch.no_grad():
        assert all(torch.equal(one, two) for one, two in zip(features(again), features(loaded), strict=True))
    # open_clip's own attention is a module that peft does not know.
    there = (tmp_path / "checkpoint" / "adapter" / "adapter_model.safetensors").is_file()
    assert there == (name != "open_clip_own_attention")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "open_clip_own_attention"])
def test_peft_applies_the_adapter_to_the_model_of_the_library(
    configs: dict[str, BackboneConfig], name: str, tmp_path: Path
) -> None:
    backbone = adapted(configs[name])
    member = small_member().model_copy(update={"backbone": configs[name].model_copy(update={"lora": CONFIG})})
    write_checkpoint(tmp_path / "checkpoint", backbone, member, {}, {})
    other = plain(configs[name])
    applied = PeftModel.from_pretrained(other.model, str(tmp_path / "checkpoint" / "adapter"))  # type: ignore[arg-type]
    other.model = applied.merge_and_unload().eval()
    with torch.no_grad():
        for actual, expected in zip(features(other), features(backbone), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_tower_of_which_nothing_is_found_fails_loudly(
    configs: dict[str, BackboneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slip of a published system: wrong names for the image tower, and its adapters were missing in silence."""
    monkeypatch.setattr(lora, "PROJECTIONS", ("query", "key", "value", "q_porj", "k_porj", "v_porj"))
    backbone = plain(configs["chinese_clip"])
    with pytest.raises(LoraError, match=r"0 query, key and value projections are found in the image tower, whose 3"):
        add_lora(backbone, CONFIG)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert add_lora(backbone, CONFIG.model_copy(update={"towers": "text"})) == {"text": 6}


def test_a_tower_of_which_some_layers_are_missed_fails_too(
    configs: dict[str, BackboneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "PROJECTIONS", ("query", "key", "q_proj", "k_proj", "v_proj"))
    with pytest.raises(LoraError, match="4 query, key and value projections are found in the text tower, whose 2 lay"):
        add_lora(plain(configs["chinese_clip"]), CONFIG)


@pytest.mark.parametrize("name", ["open_clip_resnet", "open_clip_timm"])
def test_a_tower_without_attention_is_named(name: str) -> None:
    with pytest.raises(LoraError, match="the image tower of this model has no self-attention"):
        build(SMALL[name].model_copy(update={"lora": CONFIG}))
    backbone = build(SMALL[name].model_copy(update={"lora": CONFIG.model_copy(update={"towers": "text"})}))
    assert all("lora_" in key for key, parameter in backbone.named_parameters() if parameter.requires_grad)


def test_dropout_acts_on_separate_projections_and_is_refused_for_fused_ones(
    configs: dict[str, BackboneConfig],
) -> None:
    backbone = adapted(configs["chinese_clip"], dropout=0.5)
    still = features(backbone)
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.1:  # those of BERT itself
            module.eval()
    assert all(not torch.equal(one, two) for one, two in zip(features(backbone), still, strict=True))
    with pytest.raises(LoraError, match="dropout must be 0 for this model"):
        add_lora(plain(configs["open_clip"]), CONFIG.model_copy(update={"dropout": 0.1}))


def test_the_seed_decides_the_adapters_and_leaves_torch_alone(configs: dict[str, BackboneConfig]) -> None:
    for name in ("open_clip", "chinese_clip"):
        torch.manual_seed(5)
        states = []
        for seed in (0, 0, 1):
            backbone = plain(configs[name])
            add_lora(backbone, CONFIG, seed)
            states.append({key: value for key, value in backbone.state_dict().items() if "lora_A" in key})
        drawn = torch.rand(1)
        assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(5)))
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert not any(torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_checkpointed_activations_give_the_same_gradients(configs: dict[str, BackboneConfig]) -> None:
    for name in ("open_clip", "chinese_clip"):
        gradients = []
        for again in (False, True):
            backbone = adapted(configs[name]).train()
            if again:
                backbone.set_grad_checkpointing()
            torch.manual_seed(0)
            pixels = torch.randn(len(TEXTS), 3, SIZE, SIZE)
            backbone.training_step(Batch(pixels, backbone.tokenize(TEXTS)), STATE)["loss"].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None]))
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(gradients[1], gradients[0])


def test_published_sizes_match_every_layer() -> None:
    """ViT-H-14 on the meta device; the figures of Chinese-CLIP huge are in the tests of its recipe."""
    with torch.device("meta"):
        model = open_clip.create_model("ViT-H-14", device="meta")
    config = open_clip.get_model_config("ViT-H-14")
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    backbone = OpenClip(model, tokenizer, {"model_cfg": config, "preprocess_cfg": {}})
    assert add_lora(backbone, LoraConfig()) == {"image": 96, "text": 72}
    trainable = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    assert trainable == 64 * 2 * (1280 * 96 + 1024 * 72)


def test_chinese_clip_has_the_names_of_transformers(configs: dict[str, BackboneConfig], tmp_path: Path) -> None:
    backbone = adapted(configs["chinese_clip"])
    backbone.save_pretrained(tmp_path)
    model: Any = ChineseCLIPModel.from_pretrained(tmp_path)
    query = model.text_model.encoder.layer[0].attention.self.query.weight
    start = plain(configs["chinese_clip"]).model.state_dict()["text_model.encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(query, merged_state(backbone.model)["text_model.encoder.layer.0.attention.self.query.weight"])
    assert not torch.equal(query, start)


@pytest.mark.parametrize(("towers", "texts_train"), [("both", True), ("image", False)])
def test_an_adapted_tower_keeps_its_dropout_and_another_has_none(towers: str, texts_train: bool) -> None:
    config = SMALL["chinese_clip"].model_copy(update={"lora": LoraConfig(rank=2, towers=towers)})
    backbone = build(config, 0, TEXTS).train()
    text: Any = backbone.model.text_model
    dropouts = [module for module in text.modules() if isinstance(module, nn.Dropout)]
    assert {module.training for module in dropouts} == {texts_train}
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.equal(backbone.encode_text(tokens), backbone.encode_text(tokens)) != texts_train
