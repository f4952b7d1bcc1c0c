"""Self-critical training: draws, rewards and gradients equal the slow way, and on average the exact policy gradient."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xmodal_kedro.training.self_critical as module
from tests.reference import captions as reference
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.config.captioning import SelfCriticalConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.models.backbone import seeded
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes
from xmodal_kedro.training.self_critical import SelfCritical, deal_images, draw_captions, mean_of_others

REFERENCES = [["一只狗在草地上", "草地上的狗"], ["两个人骑车", "人骑两个车"], ["红车"], ["狗骑车", "车上的狗"]]
PIXELS = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEPS = 6


def captioner(texts: Sequence[str] = ("".join(itertools.chain(*REFERENCES)),), sharpness: float = 0.5) -> Captioner:
    """In fp64, with dropout that must not matter."""
    vocabulary = Characters.learn(texts)
    with seeded(0):
        gpt = GPT(GPTSizes(vocab_size=len(vocabulary), layers=2, heads=2, width=8, block_size=STEPS, dropout=0.4))
        model = Captioner(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.4)), gpt, vocabulary)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=sharpness)
    return model.double().train()


def config(**changes: Any) -> SelfCriticalConfig:
    return SelfCriticalConfig(**{"samples": 3, **changes})


def critic(model: Captioner, references: list[list[str]] = REFERENCES, **changes: Any) -> SelfCritical:
    return SelfCritical(model, references, "characters", config(**changes), changes.pop("max_steps", STEPS))


def gradients(model: Captioner) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def slow_log_p(model: Captioner, pixels: Tensor, tokens: Sequence[int], temperature: float) -> Tensor:
    """Sum of log p of tokens, each from a forward pass of its own over all that stands before it."""
    total = torch.zeros((), dtype=torch.float64)
    for place, token in enumerate(tokens):
        read = torch.tensor([[model.vocabulary.start, *tokens[:place], 0]])  # the last id is not read
        logits = model(pixels[None], read)[0, -1]
        total = total + (logits / temperature).log_softmax(0)[token]
    return total


def slow_reward(model: Captioner, image: int, tokens: Sequence[int], references: list[list[str]] = REFERENCES) -> float:
    corpus = [[list(text) for text in texts] for texts in references]
    caption = [model.vocabulary.tokens[token] for token in tokens if token > 3]
    return reference.cider([caption], [corpus[image]], corpus, True)[0]


def drawn(ids: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[1 : 1 + length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


# --- one step


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_is_that_of_the_slow_way(baseline: Any, temperature: float) -> None:
    model, rows = captioner(), np.array([2, 0, 3])
    step = critic(model, baseline=baseline, temperature=temperature)
    losses = step.losses(PIXELS[rows], rows, torch.Generator().manual_seed(1))
    losses["loss"].backward()
    found = gradients(model)
    assert not model.training

    draws = torch.rand(9, STEPS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    captions = drawn(*draw_captions(model, model.encode(PIXELS[rows]), 3, draws, temperature))
    assert {len(caption) for caption in captions} > {STEPS}
    images = np.repeat(rows, 3).tolist()
    rewards = [slow_reward(model, image, tokens) for image, tokens in zip(images, captions, strict=True)]
    model.zero_grad()
    expected, baselines = 0.0, []
    for row, (image, tokens) in enumerate(zip(images, captions, strict=True)):
        if baseline == "mean":
            others = [rewards[other] for other in range(9) if other // 3 == row // 3 and other != row]
            against = sum(others) / 2
        else:
            greedy: list[int] = []
            while len(greedy) < STEPS and 3 not in greedy:
                read = torch.tensor([[model.vocabulary.start, *greedy, 0]])
                greedy.append(int(model(PIXELS[None, image], read)[0, -1].argmax()))
            against = slow_reward(model, image, greedy)
        baselines.append(against)
        loss = -(rewards[row] - against) * slow_log_p(model, PIXELS[image], tokens, temperature) / 9
        loss.backward()
        expected += loss.item()
    for ours, theirs in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    assert losses["loss"].item() == pytest.approx(expected, abs=1e-10)
    assert losses["reward"].item() == pytest.approx(np.mean(rewards))
    assert losses["baseline"].item() == pytest.approx(np.mean(baselines))
    assert losses["tokens"].item() == pytest.approx(np.mean([len(tokens) for tokens in captions]))
    assert losses["ended"].item() == pytest.approx(np.mean([tokens[-1] == 3 for tokens in captions]))
    assert any(found_one.abs().max() > 1e-3 for found_one in found)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_on_average_the_gradient_is_exactly_that_of_the_expected_reward(baseline: Any) -> None:
    references = [["ab", "a"], ["ba"], ["bb"]]
    model = captioner(["ab"], sharpness=0.7)
    step = SelfCritical(model, references, "characters", config(baseline=baseline, samples=300, temperature=0.8), 2)
    model.eval()
    expected = torch.zeros((), dtype=torch.float64)
    vocabulary = range(len(model.vocabulary))
    sequences = [(3,), *((first, second) for first in vocabulary if first != 3 for second in vocabulary)]
    for image in range(2):
        log_p = torch.stack([slow_log_p(model, PIXELS[image], tokens, 0.8) for tokens in sequences])
        assert log_p.exp().sum().item() == pytest.approx(1.0)
        rewards = torch.tensor([slow_reward(model, image, tokens, references) for tokens in sequences])
        expected = expected + (log_p.exp() * rewards).sum() / 2
    (-expected).backward()
    exact = torch.cat([gradient.flatten() for gradient in gradients(model)])
    generator, estimates = torch.Generator().manual_seed(2), []
    for _ in range(25):
        model.zero_grad()
        step.losses(PIXELS[:2], np.arange(2), generator)["loss"].backward()
        estimates.append(torch.cat([gradient.flatten() for gradient in gradients(model)]))
    each = torch.stack(estimates)
    error = each.std(0) / math.sqrt(len(each))
    # What few samples touch has errors that are themselves uncertain; 1 % of the largest gradient makes up for it.
    assert ((each.mean(0) - exact).abs() <= 4 * error + 0.01 * exact.abs().max()).all()
    assert torch.cosine_similarity(each.mean(0), exact, dim=0) > 0.995


def test_rewards_rise() -> None:
    model = captioner()
    step, generator = critic(model, samples=8), torch.Generator().manual_seed(0)
    optimiser, rewards = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(40):
        losses = step.losses(PIXELS, np.arange(4), generator)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        rewards.append(losses["reward"].item())
    assert np.mean(rewards[-10:]) > 2 * np.mean(rewards[:10])
    assert step.greedy_rewards(np.arange(4), model.encode(PIXELS)).mean() > 2 * np.mean(rewards[:10])


def test_the_same_generator_gives_the_same_step() -> None:
    model = captioner()
    found = []
    for seed in (0, 0, 1):
        losses = critic(model).losses(PIXELS, np.arange(4), torch.Generator().manual_seed(seed))
        found.append({name: value.item() for name, value in losses.items()})
    assert found[0] == found[1] != found[2]


def test_a_frozen_encoder_gets_no_gradient_and_vectors_do_as_well_as_pixels() -> None:
    model = captioner()
    model.image_encoder.requires_grad_(False)
    losses = []
    for images in (PIXELS, model.eval().encode(PIXELS)):
        model.zero_grad()
        loss = critic(model).losses(images, np.arange(4), torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        losses.append((loss.item(), gradients(model)))
    assert losses[0][0] == pytest.approx(losses[1][0])
    assert all(parameter.grad is None for parameter in model.image_encoder.parameters())
    assert all(torch.allclose(one, other) for one, other in zip(losses[0][1], losses[1][1], strict=True))


# --- draws


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    model, count = captioner(["ab"]).eval(), 20000
    draws = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, lengths = draw_captions(model, model.encode(PIXELS[:1]), count, draws, 0.7)
    found = Counter(map(tuple, drawn(ids, lengths)))
    for tokens, times in found.most_common(8):
        probability = slow_log_p(model, PIXELS[0], tokens, 0.7).exp().item()
        assert times / count == pytest.approx(probability, abs=4 * math.sqrt(probability / count))


def test_captions_end_are_cut_and_leave_the_batch() -> None:
    model = captioner(sharpness=0.3).eval()
    draws = torch.rand(40, STEPS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, lengths = draw_captions(model, model.encode(PIXELS), 10, draws)
    assert (ids[:, 0] == model.vocabulary.start).all()
    captions = drawn(ids, lengths)
    assert all(3 not in tokens[:-1] for tokens in captions)
    assert {tokens[-1] == 3 for tokens in captions} == {True, False}
    assert all(len(tokens) == STEPS for tokens in captions if tokens[-1] != 3)
    assert all(row[1 + length :].eq(model.vocabulary.pad).all() for row, length in zip(ids, lengths, strict=True))
    alone = [
        drawn(*draw_captions(model, model.encode(PIXELS[row // 10][None]), 1, draws[row : row + 1]))[0]
        for row in range(40)
    ]
    assert captions == alone


def test_near_no_temperature_draws_are_greedy_and_none_is_longer_than_the_longest() -> None:
    model = captioner().eval()
    draws = torch.full((8, STEPS), 0.5, dtype=torch.float64)
    ids, lengths = draw_captions(model, model.encode(PIXELS), 2, draws, 1e-4)
    greedy = decode(model, PIXELS, DecodingConfig(method="greedy", max_steps=STEPS))
    found = [tuple(token for token in tokens if token != 3) for tokens in drawn(ids, lengths)]
    assert found == [caption.ids for caption in greedy for _ in range(2)]
    assert ids.shape[1] == 1 + lengths.max()


def test_the_least_and_the_greatest_number_decide_for_the_first_and_the_last_token() -> None:
    model = captioner().eval()
    for number, token in ((0.0, 0), (1.0 - 2.0**-53, len(model.vocabulary) - 1)):
        ids, _ = draw_captions(model, model.encode(PIXELS[:1]), 1, torch.full((1, 2), number, dtype=torch.float64))
        assert ids[0, 1:].tolist() == [token, token]


# --- baselines and batches


def test_the_mean_of_others_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert mean_of_others(rewards).tolist() == [[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]
    assert mean_of_others(torch.tensor([[1.0, 5.0]])).tolist() == [[5.0, 1.0]]


@pytest.mark.parametrize(("images", "count"), [(4, 2), (3, 2), (4, 3), (1, 2)])
def test_processes_together_take_the_step_of_one(images: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = captioner(), np.array([3, 1, 0, 2])[:images]

    def step(rank: int) -> tuple[dict[str, float], list[Tensor]]:
        monkeypatch.setattr(module, "rank", lambda: rank)
        model.zero_grad()
        one = critic(model)
        losses = one.losses(PIXELS[one.own(rows)], rows, torch.Generator().manual_seed(4))
        losses["loss"].backward()
        return {name: value.item() for name, value in losses.items()}, gradients(model)

    whole = step(0)
    monkeypatch.setattr(module, "processes", lambda: count)
    monkeypatch.setattr(module, "averaged", lambda numbers: {"size": images * 3 / count})
    parts = [step(rank) for rank in range(count)]
    for name, value in whole[0].items():
        assert np.mean([losses[name] for losses, _ in parts]) == pytest.approx(value)
    for row, gradient in enumerate(whole[1]):
        torch.testing.assert_close(torch.stack([each[row] for _, each in parts]).mean(0), gradient)


@pytest.mark.parametrize(("images", "batch_size"), [(9, 4), (8, 4), (3, 8), (1, 1)])
def test_every_image_is_dealt_once_and_evenly(images: int, batch_size: int) -> None:
    dealt = deal_images(images, batch_size, np.random.default_rng(0))
    assert sorted(np.concatenate(dealt).tolist()) == list(range(images))
    sizes = [len(batch) for batch in dealt]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(dealt) == math.ceil(images / batch_size)


def test_more_steps_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_steps is 7.*6 positions"):
        SelfCritical(captioner(), REFERENCES, "characters", config(), 7)
