"""An image model of timm and a GPT over characters: features and losses by hand, and what of it trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.small import SIZE, TEXTS
from tests.models.small_res2net_gpt import SIZES, changed, small
from xmodal_kedro.config.member import LoraConfig, LossConfig, TrainConfig
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import Batch, TrainState
from xmodal_kedro.models.characters import SEP
from xmodal_kedro.models.lora import LoraError, add_lora
from xmodal_kedro.models.res2net_gpt import Projection, Res2NetGPT


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def state_of(**loss: Any) -> TrainState:
    return TrainState(step=0, steps=1, steps_per_epoch=1, loss=LossConfig(**loss))


# --- features


def test_a_projection_is_the_published_formula() -> None:
    torch.manual_seed(0)
    head = Projection(5, 4, dropout=0.5).eval()
    nn.init.normal_(head.norm.weight)
    nn.init.normal_(head.norm.bias)
    state, x = head.state_dict(), torch.randn(3, 5)
    p = x @ state["linear.weight"].T + state["linear.bias"]
    gelu = p * (1 + torch.erf(p / math.sqrt(2))) / 2
    summed = p + gelu @ state["second.weight"].T + state["second.bias"]
    mean, variance = summed.mean(1, keepdim=True), summed.var(1, correction=0, keepdim=True)
    expected = (summed - mean) / (variance + 1e-5).sqrt() * state["norm.weight"] + state["norm.bias"]
    torch.testing.assert_close(head(x), expected)


def test_dropout_falls_on_the_second_layer_alone() -> None:
    torch.manual_seed(0)
    head = Projection(5, 400, dropout=0.5)
    head.norm = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(1, 5)
    with torch.no_grad():
        rest = head(x) - head.linear(x)
        whole = head.second(nn.functional.gelu(head.linear(x)))
    kept = rest.abs() > 1e-6
    assert 100 < kept.sum() < 300
    torch.testing.assert_close(rest[kept], 2 * whole[kept], atol=1e-5, rtol=1e-4)


def test_the_image_feature_is_what_timm_pools() -> None:
    backbone = small()
    reference = timm.create_model("test_resnet", num_classes=0).eval()
    reference.load_state_dict(backbone.model.image.trunk.state_dict())
    with torch.no_grad():
        pooled = reference.forward_features(pixels()).mean((2, 3))
        expected = backbone.model.image.projection(pooled)
        torch.testing.assert_close(backbone.encode_image(pixels()), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_text_feature_is_the_state_at_sep_before_the_final_norm() -> None:
    backbone = small()
    gpt = backbone.model.text
    tokens = backbone.tokenize(TEXTS)
    together = backbone.encode_text(tokens)
    for text, feature in zip(TEXTS, together, strict=True):
        ids = backbone.tokenize([text])["input_ids"]
        assert ids[0, -1] == SEP
        last = gpt(gpt.embed(ids))[:, -1]
        torch.testing.assert_close(backbone.model.text_projection(last)[0], feature, atol=1e-5, rtol=1e-5)
    gpt.norm.weight.fill_(7.0)
    assert torch.equal(backbone.encode_text(tokens), together)
    longer = backbone.encode_text(backbone.tokenize(["A red car!"]))
    assert not torch.allclose(longer, backbone.encode_text(backbone.tokenize(["A red car."])), atol=1e-3)


def test_the_default_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        backbone: Any = Res2NetGPT.from_config({}, 0, TEXTS)
    gpt = backbone.model.text.sizes
    assert (gpt.layers, gpt.heads, gpt.width, gpt.block_size, gpt.dropout) == (12, 12, 768, 100, 0.1)
    assert gpt.vocab_size == len(backbone.characters) == 4 + len(set("".join(TEXTS)))
    assert backbone.model.image.projection.linear.weight.shape == (768, 2048)
    with torch.device("meta"):
        reference = timm.create_model("res2next50", num_classes=0)
    shapes = ({name: t.shape for name, t in m.state_dict().items()} for m in (backbone.model.image.trunk, reference))
    assert next(shapes) == next(shapes)
    assert (backbone.embed_dim, backbone.image_size, backbone.context) == (768, 224, 100)
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.5,) * 3)
    assert math.exp(-small().logit_scale.item()) == pytest.approx(0.07)


def test_any_image_model_of_timm_will_do() -> None:
    backbone: Any = build(changed(image="test_vit"), 0, TEXTS).eval()
    assert backbone.encode_image(pixels()).shape == (3, 16)
    grouped = [id(p) for group in backbone.layer_groups("image") for p in group]
    assert sorted(grouped) == sorted(id(p) for p in backbone.model.image.parameters())
    assert len(backbone.layer_groups("image")) == 1 + 6 + 1  # embeddings, blocks, projection
    assert backbone.attention_layers("image") == 6


# --- training


def test_the_default_loss_is_that_of_cosines_and_a_learned_temperature() -> None:
    backbone = small()
    batch = Batch(pixels(len(TEXTS)), backbone.tokenize(TEXTS))
    losses = backbone.training_step(batch, state_of())
    with torch.no_grad():
        image, text = backbone.encode_image(batch.pixels), backbone.encode_text(batch.tokens)
        image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
        logits = image @ text.T / 0.07
        expected = -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal().mean() / 2
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert backbone.logit_scale.grad != 0


def test_the_published_loss_sees_features_that_are_not_normalised() -> None:
    backbone = small()
    batch = Batch(pixels(len(TEXTS)), backbone.tokenize(TEXTS))
    losses = backbone.training_step(batch, state_of(kind="soft_target"))
    with torch.no_grad():
        image, text = backbone.encode_image(batch.pixels), backbone.encode_text(batch.tokens)
        logits, targets = text @ image.T, ((text @ text.T + image @ image.T) / 2).softmax(1)
        expected = -((targets * logits.log_softmax(1)).sum(1) + (targets * logits.log_softmax(0)).sum(0)).mean() / 2
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert backbone.logit_scale.grad is None


def test_the_published_loss_is_refused_where_it_cannot_be_computed() -> None:
    class Matching(Res2NetGPT):
        dual = False

    config = TrainConfig(epochs=1, batch_size=4, lr=1e-3, loss=LossConfig(kind="soft_target"))
    parts = config.model_copy(update={"micro_batch": 2})
    for family, refused in ((Res2NetGPT, parts), (Matching, config)):
        assert "train.loss.kind 'soft_target' is for backbones" in (family.refusal(refused) or "")
    assert Res2NetGPT.refusal(config) is None


def test_what_captioning_alone_needs_is_saved_and_does_not_train() -> None:
    backbone = small()
    frozen = {name for name, p in backbone.model.named_parameters() if not p.requires_grad}
    assert frozen == {"text.norm.weight", "text.norm.bias", "text.head.weight", "text.head.bias"}
    assert frozen <= backbone.model.state_dict().keys()
    backbone.freeze({"text": 1})
    backbone.train()
    assert not backbone.model.text.dropout.training  # of a frozen GPT nothing is dropped
    assert backbone.model.text_projection.dropout.training


def test_its_captioner_has_its_parts_and_not_copies_of_them() -> None:
    backbone = small()
    captioner = backbone.captioner()
    assert backbone.writes
    assert captioner.image_encoder is backbone.model.image
    assert captioner.gpt is backbone.model.text
    assert captioner.vocabulary == backbone.characters


def test_the_image_model_is_checkpointed_and_one_that_cannot_be_is_named() -> None:
    backbone = small()
    backbone.set_grad_checkpointing()
    assert backbone.model.image.trunk.grad_checkpointing
    with torch.device("meta"):
        other = Res2NetGPT.from_config({**SIZES, "image": "dla34"}, 0, TEXTS)
    with pytest.raises(ValueError, match=r"backbone.grad_checkpointing: timm cannot do it for dla34"):
        other.set_grad_checkpointing()


def test_adapters_fit_the_text_tower() -> None:
    backbone = small()
    before = backbone.encode_text(backbone.tokenize(TEXTS))
    assert add_lora(backbone, LoraConfig(rank=2, towers="text")) == {"text": 3 * 2}
    assert torch.equal(backbone.encode_text(backbone.tokenize(TEXTS)), before)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    assert not torch.allclose(backbone.encode_text(backbone.tokenize(TEXTS)), before, atol=1e-3)
    with pytest.raises(LoraError, match="the image tower of this model has no self-attention"):
        add_lora(small(), LoraConfig(rank=2, towers="both"))
