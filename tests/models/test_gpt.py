"""The GPT against its formulas and GPT-2 of transformers, and steps with a cache against whole sequences."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.reference import gpt as slow
from xmodal_kedro.models.gpt import GPT, Cache, GPTSizes, as_gpt2

SIZES = GPTSizes(vocab_size=11, layers=3, heads=4, width=24, block_size=9, dropout=0.1)


def some_gpt(sizes: GPTSizes = SIZES, seed: int = 0) -> GPT:
    """Weights so large that places and tokens matter; from the initial ones all logits would be nearly alike."""
    gpt, generator = GPT(sizes).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return gpt


def some_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, SIZES.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def doubles(gpt: GPT) -> slow.Weights:
    return {name: tensor.double() for name, tensor in gpt.state_dict().items()}


@pytest.mark.parametrize("length", [1, 2, 9])
@torch.no_grad()
def test_states_and_logits_are_those_of_the_formulas(length: int) -> None:
    gpt, ids = some_gpt(), some_ids(3, length)
    states = gpt(gpt.embed(ids))
    logits = gpt.logits(states)
    weights = doubles(gpt)
    for row in range(3):
        expected = slow.states(weights, slow.embedded(weights, ids[row].tolist()), SIZES.layers, SIZES.heads)
        torch.testing.assert_close(states[row].double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
        expected = [slow.logits(weights, state) for state in expected]
        torch.testing.assert_close(logits[row].double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert logits.std(0).max() > 0.1  # else anything would agree


def test_the_published_sizes_and_initial_weights() -> None:
    sizes = GPTSizes(vocab_size=50)
    assert (sizes.layers, sizes.heads, sizes.width, sizes.block_size, sizes.dropout) == (12, 12, 768, 100, 0.1)
    gpt = GPT(SIZES)
    assert gpt.positions.shape == (9, 24)
    assert not gpt.positions.any()
    names = {name for name, _ in gpt.named_parameters()}
    assert "blocks.0.attention.queries_keys_values.bias" not in names
    assert gpt.head.weight.data_ptr() != gpt.tokens.weight.data_ptr()
    assert 0.015 < gpt.tokens.weight.std() < 0.025


@pytest.mark.parametrize("sizes", [{"width": 25}, {"heads": 0}, {"dropout": 1.0}, {"embed": 3}, {"vocab_size": 0}])
def test_sizes_that_make_no_gpt_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(sizes))):
        GPTSizes(**{**SIZES.model_dump(), **sizes})


@torch.no_grad()
def test_a_later_token_changes_no_earlier_state() -> None:
    gpt, ids = some_gpt(), some_ids(2, 8)
    before = gpt(gpt.embed(ids))
    for place in range(8):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % SIZES.vocab_size
        after = gpt(gpt.embed(changed))
        torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=1e-6)
        assert ((after[:, place:] - before[:, place:]).abs().amax(dim=(0, 2)) > 1e-3).all()


@torch.no_grad()
def test_positions_count_from_the_start_that_is_given() -> None:
    gpt, ids = some_gpt(), some_ids(3, 4)
    plain = gpt.tokens(ids)
    torch.testing.assert_close(gpt.embed(ids), plain + gpt.positions[:4])
    torch.testing.assert_close(gpt.embed(ids, 5), plain + gpt.positions[5:])
    assert gpt.embed(ids[:0]).shape == (0, 4, 24)
    assert gpt.embed(ids[:, :0]).shape == (3, 0, 24)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text of 10 tokens does not fit the 9 positions.*block_size"):
        some_gpt().embed(some_ids(2, 4), 6)


@pytest.mark.parametrize("parts", [[1] * 9, [9], [4, 1, 1], [8, 1]])
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_steps_give_the_states_of_the_whole(parts: list[int], rows: int) -> None:
    gpt = some_gpt()
    embedded = gpt.embed(some_ids(rows, sum(parts)))
    cache = Cache(9)
    stepped = torch.cat([gpt(part, cache) for part in embedded.split(parts, dim=1)], dim=1)
    assert cache.length == sum(parts)
    torch.testing.assert_close(stepped, gpt(embedded), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 2, 0], [1], [0, 0, 1, 1, 2, 2, 0], []])
@torch.no_grad()
def test_gathered_rows_go_on_by_themselves(rows: list[int]) -> None:
    """As beams do: the texts of the rows part after the gathering."""
    gpt, ids, chosen = some_gpt(), some_ids(3, 5), torch.tensor(rows, dtype=torch.long)
    more, cache = some_ids(len(rows), 4, seed=2), Cache(9)
    gpt(gpt.embed(ids), cache=cache)
    gathered = cache.gather(chosen)
    stepped = [gpt(gpt.embed(more[:, at : at + 1], 5 + at), cache=gathered) for at in range(4)]
    whole = gpt(gpt.embed(torch.cat([ids[chosen], more], dim=1)))
    torch.testing.assert_close(torch.cat(stepped, dim=1), whole[:, 5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_are_gathered_again_and_again() -> None:
    """More rows, fewer, as many, more than ever: each time into room that other rows have had."""
    gpt, ids, cache = some_gpt(), some_ids(3, 2), Cache(9)
    gpt(gpt.embed(ids), cache=cache)
    for step, rows in enumerate([[2, 0, 2, 1, 1, 0], [5, 0], [1, 1], [1], [0] * 8, [7, 3, 3]]):
        cache, ids = cache.gather(torch.tensor(rows)), ids[rows]
        ids = torch.cat([ids, some_ids(len(rows), 1, seed=step)], dim=1)
        state = gpt(gpt.embed(ids[:, -1:], 2 + step), cache=cache)
        torch.testing.assert_close(state, gpt(gpt.embed(ids))[:, -1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_steps_write_into_the_room_that_is_there() -> None:
    gpt, cache = some_gpt(), Cache(9)
    rooms = []
    for place in range(4):
        gpt(gpt.embed(some_ids(2, 1), place), cache=cache)
        rooms.append([(keys.data_ptr(), values.data_ptr(), keys.shape[2]) for keys, values in cache._layers])
    assert rooms[0] == rooms[1] == rooms[2] == rooms[3]
    assert len(rooms[0]) == SIZES.layers


@torch.no_grad()
def test_a_full_cache_and_foreign_rows_are_refused() -> None:
    gpt, cache = some_gpt(), Cache(4)
    gpt(gpt.embed(some_ids(2, 3)), cache=cache)
    with pytest.raises(ValueError, match="cache of 4 places, 3 of them filled, has no room for 2 more"):
        gpt(gpt.embed(some_ids(2, 2)), cache=cache)
    with pytest.raises(ValueError, match="cache of 2 rows cannot be continued with 1"):
        gpt(gpt.embed(some_ids(1, 1)), cache=cache)
    gpt(gpt.embed(some_ids(2, 1)), cache=cache)  # a refusal spoils nothing
    assert cache.length == 4
    cache = Cache(9)
    gpt(gpt.embed(some_ids(2, 3)), cache=cache)
    with pytest.raises(ValueError, match="one place at a time, and not with 2"):
        gpt(gpt.embed(some_ids(2, 2)), cache=cache)


def test_every_weight_learns() -> None:
    gpt, ids = some_gpt(), some_ids(3, 6)
    gpt.logits(gpt(gpt.embed(ids))).square().sum().backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_gradients_are_those_of_the_formulas() -> None:
    gpt, ids = some_gpt(), some_ids(1, 4)
    gpt.logits(gpt(gpt.embed(ids))).logsumexp(2).sum().backward()
    weights = {name: tensor.requires_grad_() for name, tensor in doubles(gpt).items()}
    rows = slow.states(weights, slow.embedded(weights, ids[0].tolist()), SIZES.layers, SIZES.heads)
    sum(slow.logits(weights, row).logsumexp(0) for row in rows).backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropout_is_for_training_alone() -> None:
    gpt = some_gpt()
    embedded = gpt.embed(some_ids(2, 5))
    assert torch.equal(gpt(embedded), gpt(embedded))
    gpt.train()
    assert not torch.allclose(gpt(embedded), gpt(embedded), atol=1e-3)


@torch.no_grad()
def test_bf16_is_near_and_its_cache_is_half_as_large() -> None:
    gpt, cache = some_gpt(), Cache(9)
    embedded = gpt.embed(some_ids(2, 9))
    exact = gpt(embedded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = torch.cat([gpt(part, cache=cache) for part in embedded.split(1, dim=1)], dim=1)
    assert {part.dtype for layer in cache._layers for part in layer} == {torch.bfloat16}
    assert not torch.equal(low.float(), exact)
    torch.testing.assert_close(low.float(), exact, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("heads", [1, 2, 12])
@torch.no_grad()
def test_gpt2_of_transformers_gives_the_same_logits(heads: int) -> None:
    gpt = some_gpt(GPTSizes(vocab_size=30, layers=2, heads=heads, width=48, block_size=9))
    theirs = as_gpt2(gpt, start=2, end=3, padding=0)
    ids = torch.randint(0, 30, (5, 9), generator=torch.Generator().manual_seed(3))
    vector = torch.randn(5, 1, 48, generator=torch.Generator().manual_seed(4))
    ours = gpt.logits(gpt(torch.cat([vector, gpt.embed(ids)], dim=1)))
    # What they are given has no positions: they add their own.
    found = theirs(inputs_embeds=torch.cat([vector, theirs.transformer.wte(ids)], dim=1)).logits
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=1e-4)
    assert ours.std(0).max() > 0.1
    assert not theirs.training
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (2, 3, 0)
    assert math.isclose(theirs.config.resid_pdrop, 0.1)
    gpt.tokens.weight.zero_()  # it was a copy
    assert theirs.transformer.wte.weight.any()


@torch.no_grad()
def test_gpt2_writes_greedily_what_our_steps_write() -> None:
    gpt = some_gpt(GPTSizes(vocab_size=30, layers=2, heads=4, width=48, block_size=9), seed=5)
    vector = torch.randn(4, 1, 48, generator=torch.Generator().manual_seed(6))
    theirs, start = as_gpt2(gpt, start=2, end=3, padding=0), torch.full((4, 1), 2)
    prompt = torch.cat([vector, theirs.transformer.wte(start)], dim=1)
    mask = torch.ones(4, 2, dtype=torch.long)
    written = theirs.generate(
        inputs_embeds=prompt, attention_mask=mask, do_sample=False, min_new_tokens=8, max_new_tokens=8
    )
    cache, ids, ours = Cache(10), start, []
    gpt(vector, cache=cache)
    for place in range(8):
        logits = gpt.logits(gpt(gpt.embed(ids, place), cache=cache))
        logits[:, :, 3] = -torch.inf  # they write no end before the eighth token
        ids = logits.argmax(2)
        ours.append(ids)
    assert torch.equal(written, torch.cat(ours, dim=1))
    assert len({tuple(row) for row in written.tolist()}) > 1
