"""Texts that share the memory of an image score as each pair alone, and what is shared is computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.models.small import SIZE, TEXTS, small_backbone
from tests.reference import blip_matching as slow
from xmodal_kedro.config.member import LoraConfig
from xmodal_kedro.models.backbone import Tokens
from xmodal_kedro.models.blip import Blip
from xmodal_kedro.models.lora import add_lora

WORDS = ["red", "car", "a woman", "bus", "seen from behind", "in a long blue coat", ""]


def blip(seed: int = 0) -> Blip:
    backbone = small_backbone("blip", seed)
    assert isinstance(backbone, Blip)
    return backbone


def some_states(backbone: Blip, count: int) -> Tensor:
    pixels = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return backbone.image_states(pixels)


def taken(tokens: Tokens, rows: list[int]) -> Tokens:
    return {name: values[rows] for name, values in tokens.items()}


CASES = {
    "every text of every image": ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4] * 3),
    "one image, many texts": ([1] * 9, [4, 1, 2, 2, 0, 3, 1, 4, 0]),
    "one text, many images": ([2, 0, 1], [1, 1, 1]),
    "mixed, uneven, repeated": ([2, 0, 2, 1, 2, 2, 0, 2], [3, 1, 0, 4, 2, 2, 1, 1]),
    "one pair": ([1], [2]),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_scores_are_those_of_each_pair_alone_by_the_formulas_and_by_transformers(case: str) -> None:
    backbone, (images, texts) = blip(), CASES[case]
    states, tokens = some_states(backbone, 3), backbone.tokenize(TEXTS)
    found = backbone.match_memory(backbone.image_memory(states), torch.tensor(images), taken(tokens, texts))
    assert found.dtype == torch.float32
    assert found.shape == (len(images),)
    weights = backbone.model.state_dict()
    for logit, image, text in zip(found, images, texts, strict=True):
        ids = tokens["input_ids"][text][: int(tokens["attention_mask"][text].sum())].tolist()
        expected = slow.match_logit(weights, states[image], [backbone.matching_token, *ids[1:]], layers=2, heads=2)
        torch.testing.assert_close(float(logit), expected, atol=2e-6, rtol=1e-5)
    by_transformers = backbone.match(states[images], taken(tokens, texts))
    torch.testing.assert_close(found, by_transformers, atol=2e-6, rtol=1e-5)
    if len(found) > 1:
        assert found.std() > 1e-3  # else anything would agree


@torch.no_grad()
def test_padding_order_and_company_change_nothing() -> None:
    backbone = blip()
    texts = [" ".join(WORDS[: n % 7]) + " car" * (n % 3) for n in range(30)]
    images = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(2))
    memory, tokens = backbone.image_memory(some_states(backbone, 4)), backbone.tokenize(texts)
    together = backbone.match_memory(memory, images, tokens)
    wide = {name: F.pad(values, (0, 7)) for name, values in tokens.items()}
    torch.testing.assert_close(backbone.match_memory(memory, images, wide), together, atol=2e-6, rtol=1e-5)
    turned = {name: values.flip(0) for name, values in tokens.items()}
    torch.testing.assert_close(
        backbone.match_memory(memory, images.flip(0), turned).flip(0), together, atol=2e-6, rtol=1e-5
    )
    for size in (1, 7, 29):
        parts = [
            backbone.match_memory(memory, images[at : at + size], taken(tokens, list(range(30))[at : at + size]))
            for at in range(0, 30, size)
        ]
        torch.testing.assert_close(torch.cat(parts), together, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_given_tokens_stay_as_they_are_and_nothing_gives_nothing() -> None:
    backbone = blip()
    memory, tokens = backbone.image_memory(some_states(backbone, 2)), backbone.tokenize(TEXTS)
    before = {name: values.clone() for name, values in tokens.items()}
    backbone.match_memory(memory, torch.tensor([0, 1, 0, 1, 0]), tokens)
    assert all(torch.equal(tokens[name], before[name]) for name in tokens)
    nothing = torch.empty(0, dtype=torch.long)
    assert backbone.match_memory(memory, nothing, backbone.tokenize([])).shape == (0,)


@torch.no_grad()
def test_images_are_projected_once_and_no_padding_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = blip()
    text: Any = backbone.model.text_encoder
    layers = text.encoder.layer
    seen: dict[str, list[int]] = {"key": [], "ffn": []}
    for layer in layers:
        layer.crossattention.self.key.register_forward_hook(lambda *_: seen["key"].append(1))
        layer.intermediate.dense.register_forward_hook(lambda _, given, __: seen["ffn"].append(given[0].numel() // 16))
    states, tokens = some_states(backbone, 3), backbone.tokenize(TEXTS)
    memory = backbone.image_memory(states)
    assert [tuple(part.shape) for part in memory] == [(3, states.shape[1], 16)] * 4
    for image in range(3):
        backbone.match_memory(memory, torch.full((len(TEXTS),), image), tokens)
    assert len(seen["key"]) == len(layers)
    assert seen["ffn"] == [int(tokens["attention_mask"].sum()), len(TEXTS)] * 3  # the last layer follows [ENC] alone


@torch.no_grad()
def test_adapters_count() -> None:
    backbone = blip()
    add_lora(backbone, LoraConfig(rank=4, towers="text"))
    torch.manual_seed(3)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.5)
    backbone.eval()
    states, tokens = some_states(backbone, len(TEXTS)), backbone.tokenize(TEXTS)
    expected = backbone.match(states, tokens)
    assert not torch.allclose(expected, blip().eval().match(states, tokens), atol=1e-3)
    found = backbone.match_memory(backbone.image_memory(states), torch.arange(len(TEXTS)), tokens)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_bf16_is_near() -> None:
    backbone = blip()
    states, tokens, images = some_states(backbone, 2), backbone.tokenize(TEXTS), torch.tensor([0, 1, 1, 0, 1])
    exact = backbone.match_memory(backbone.image_memory(states), images, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone.match_memory(backbone.image_memory(states), images, tokens)
        plain = backbone.match(states[images], tokens)
    assert not torch.equal(low.float(), exact)
    torch.testing.assert_close(low.float(), exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(low.float(), plain.float(), atol=0.05, rtol=0.05)
