"""Every registered backbone keeps the promises of the interface, whatever library is behind it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import AugmentConfig, LossConfig
from xmodal_kedro.models import registered
from xmodal_kedro.models.backbone import Backbone, Batch, Tokens, TrainState, trimmed

IDLE = {"res2net_gpt": 4}  # parameters that captioning alone uses, frozen here: final norm and layer to the vocabulary
STATE = TrainState(step=0, steps=1, steps_per_epoch=1, loss=LossConfig())


@pytest.fixture(scope="module", params=sorted(SMALL))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return small_backbone(request.param)


@pytest.fixture
def fresh(request: pytest.FixtureRequest, backbone: Backbone) -> Backbone:
    """A copy that a test may change."""
    return small_backbone(request.node.callspec.params["backbone"])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def features(backbone: Backbone) -> tuple[Tensor, Tensor]:
    return backbone.encode_image(pixels()), backbone.encode_text(backbone.tokenize(TEXTS))


def batch(backbone: Backbone) -> Batch:
    return Batch(pixels(len(TEXTS)), backbone.tokenize(TEXTS))


def padded(tokens: Tokens, length: int) -> Tokens:
    missing = length - tokens["input_ids"].shape[1]
    return {name: torch.nn.functional.pad(values, (0, missing)) for name, values in tokens.items()}


def test_every_registered_backbone_is_among_the_small_ones() -> None:
    assert {config.name for config in SMALL.values()} == set(registered())


def test_small_means_small(backbone: Backbone) -> None:
    assert sum(p.numel() for p in backbone.parameters()) < 1_000_000


def test_features_are_rows_of_the_embedding_width_and_not_normalised(backbone: Backbone) -> None:
    image, text = features(backbone)
    assert image.shape == (3, backbone.embed_dim)
    assert text.shape == (len(TEXTS), backbone.embed_dim)
    for rows in (image, text):
        assert rows.isfinite().all()
        assert not torch.allclose(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-3)


def test_a_text_alone_has_the_features_it_has_in_a_batch_of_longer_ones(backbone: Backbone) -> None:
    with torch.no_grad():
        together = backbone.encode_text(backbone.tokenize(TEXTS))
        alone = torch.cat([backbone.encode_text(backbone.tokenize([text])) for text in TEXTS])
        as_padded = backbone.encode_text(padded(backbone.tokenize(TEXTS), 40))
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(as_padded, together, atol=1e-5, rtol=1e-5)


def test_trimming_cuts_to_the_longest_text_and_no_further(backbone: Backbone) -> None:
    tokens = backbone.tokenize(TEXTS)
    short = {name: values[:1] for name, values in tokens.items()}
    length = int(tokens["attention_mask"][0].sum())
    assert trimmed(short)["input_ids"].shape == (1, length)
    assert trimmed(short)["input_ids"].tolist() == backbone.tokenize(TEXTS[:1])["input_ids"].tolist()
    assert len(backbone.tokenize([])["input_ids"]) == 0
    assert trimmed({name: values[:0] for name, values in tokens.items()})["input_ids"].shape == (0, 0)


def test_texts_beyond_the_context_are_cut_and_still_end(backbone: Backbone) -> None:
    tokens = backbone.tokenize(["word " * 300, "word " * 301])
    assert tokens["input_ids"].shape[1] <= 64
    assert torch.equal(tokens["input_ids"][0], tokens["input_ids"][1])
    assert tokens["input_ids"][0, -1] == backbone.tokenize(["word"])["input_ids"][0, -1]


def test_the_seed_decides_the_weights_and_leaves_torch_alone(request: pytest.FixtureRequest, fresh: Backbone) -> None:
    name = request.node.callspec.params["backbone"]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    same, other = small_backbone(name, seed=0), small_backbone(name, seed=1)
    assert torch.equal(torch.rand(1), expected)
    states = fresh.state_dict(), same.state_dict(), other.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not all(torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_layer_groups_are_exactly_the_parameters_that_a_tower_uses(fresh: Backbone) -> None:
    fresh.encode_image(pixels()).sum().backward()
    used = {"image": {id(p) for p in fresh.parameters() if p.grad is not None}}
    fresh.zero_grad()
    tokens = fresh.tokenize(TEXTS)
    fresh.encode_text(tokens).sum().backward()
    if fresh.matches:  # the text tower looks at the image
        fresh.match(fresh.image_states(pixels(len(TEXTS))).detach(), tokens).sum().backward()
    used["text"] = {id(p) for p in fresh.parameters() if p.grad is not None}
    for tower in ("image", "text"):
        groups = fresh.layer_groups(tower)
        members = [id(p) for group in groups for p in group]
        assert all(groups)
        assert len(members) == len(set(members))
        assert set(members) == used[tower]
    idle = {id(p) for p in fresh.parameters()} - used["image"] - used["text"] - {id(fresh.logit_scale)}
    assert len(idle) == IDLE.get(fresh.name, 0)
    assert not any(p.requires_grad for p in fresh.parameters() if id(p) in idle)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_layer_groups_run_from_input_to_output(fresh: Backbone, tower: str) -> None:
    """With only the last n groups unlocked, gradients reach those and no others."""
    groups = fresh.layer_groups(tower)
    for unlocked in range(len(groups), -1, -1):
        fresh.zero_grad()
        fresh.freeze({tower: unlocked})
        fresh.training_step(batch(fresh), STATE)["loss"].backward()
        reached = [any(p.grad is not None for p in group) for group in groups]
        assert reached == [False] * (len(groups) - unlocked) + [True] * unlocked


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_does_not_change_in_training(fresh: Backbone, tower: str) -> None:
    fresh.freeze({tower: 0})
    fresh.train()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in fresh.parameters() if p.requires_grad], lr=1.0)
    fresh.training_step(batch(fresh), STATE)["loss"].backward()
    optimiser.step()
    frozen = {id(p) for group in fresh.layer_groups(tower) for p in group}
    names = {name for name, p in fresh.named_parameters() if id(p) in frozen}
    # Buffers are batch statistics; only image towers have some.
    names |= {name for name, _ in fresh.named_buffers() if tower == "image"} & before.keys()
    after = fresh.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not changed & names


def test_a_tower_cannot_unlock_more_groups_than_it_has(fresh: Backbone) -> None:
    with pytest.raises(ValueError, match=r"unlocked_groups\.image is 99: this image tower has \d+ layer groups"):
        fresh.freeze({"image": 99})


def test_a_training_step_teaches_both_towers_and_the_temperature(fresh: Backbone) -> None:
    losses = fresh.training_step(batch(fresh), STATE)
    assert losses["loss"].shape == ()
    losses["loss"].backward()
    assert all((p.grad is not None) == p.requires_grad for p in fresh.parameters())
    assert fresh.logit_scale.requires_grad == (fresh.name != "resnet_roberta")  # whose temperature is fixed
    assert sum(not p.requires_grad for p in fresh.parameters()) <= IDLE.get(fresh.name, 1)


def test_images_are_resized_and_normalised_for_the_model(backbone: Backbone) -> None:
    packed = torch.full((2, 2 * SIZE, 2 * SIZE, 3), 255, dtype=torch.uint8)
    white = backbone.image_transform(train=False)(packed)
    assert white.shape == (2, 3, SIZE, SIZE)
    expected = (1 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    torch.testing.assert_close(white, expected.view(1, 3, 1, 1).expand_as(white), atol=1e-5, rtol=1e-5)


def test_views_are_random_in_training_alone(backbone: Backbone) -> None:
    packed = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    augment = AugmentConfig(scale=[0.3, 0.6], flip=0.5)
    plain = backbone.image_transform(train=False, augment=augment)(packed)
    view = backbone.image_transform(train=True, augment=augment)(packed, torch.Generator().manual_seed(1))
    assert torch.equal(plain, backbone.image_transform(train=False)(packed))
    assert view.shape == plain.shape
    assert not torch.equal(view, plain)


@pytest.mark.usefixtures("no_network")
def test_a_saved_model_loads_to_the_bit_without_network(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path / "model")
    again = type(backbone).from_pretrained(tmp_path / "model").eval()
    for expected, loaded in zip(features(backbone), features(again), strict=True):
        assert torch.equal(expected, loaded)
    assert (again.mean, again.std, again.image_size, again.embed_dim) == (
        backbone.mean,
        backbone.std,
        backbone.image_size,
        backbone.embed_dim,
    )
    assert torch.equal(again.logit_scale, backbone.logit_scale)


def test_features_in_bf16_are_near_those_in_fp32(backbone: Backbone) -> None:
    plain = features(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = features(backbone)
    for expected, actual in zip(plain, low, strict=True):
        assert actual.shape == expected.shape
        cosine = torch.nn.functional.cosine_similarity(actual.float(), expected)
        assert cosine.min() > 0.99
        assert not torch.equal(actual.float(), expected)


def test_checkpointed_activations_give_the_same_gradients(request: pytest.FixtureRequest, fresh: Backbone) -> None:
    name = request.node.callspec.params["backbone"]
    try:
        fresh.set_grad_checkpointing()
    except ValueError as error:
        assert "backbone.grad_checkpointing" in str(error)  # noqa: PT017
        return
    gradients = []
    for model in (fresh, small_backbone(name)):
        model.train()
        torch.manual_seed(0)  # of dropout
        model.training_step(batch(model), STATE)["loss"].backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)


def test_the_context_is_obeyed(fresh: Backbone) -> None:
    fresh.limit_context(6)
    tokens = fresh.tokenize(["word " * 100, "word"])
    assert int(tokens["attention_mask"].sum(1).max()) == 6
    with pytest.raises(ValueError, match=r"backbone.context is 7: this model allows 6 tokens at most"):
        fresh.limit_context(7)
