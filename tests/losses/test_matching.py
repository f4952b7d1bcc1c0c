"""Matching: hard negatives are drawn as often as they should be, and the loss is that of loops."""

from __future__ import annotations

import torch

from tests.reference import blip as reference
from xmodal_kedro.losses.matching import draw_negatives, gathered_tokens, matching_loss, padded


def test_negatives_are_drawn_by_their_softmax_among_other_keys() -> None:
    similarity = torch.tensor([[2.0, 1.0, 0.5, 0.0], [0.0, 3.0, 0.2, 1.0]])
    row_keys, keys = [5, 6], [5, 6, 5, 8]
    same = torch.tensor(row_keys)[:, None] == torch.tensor(keys)
    draws = 20_000
    torch.manual_seed(0)
    columns, exists = draw_negatives(similarity.repeat_interleave(draws, 0), same.repeat_interleave(draws, 0))
    assert exists.all()
    counts = torch.stack([torch.bincount(rows, minlength=4) for rows in columns.view(2, draws)]) / draws
    expected = torch.tensor(reference.negative_probabilities(similarity, row_keys, keys))
    assert (counts[expected == 0] == 0).all()
    torch.testing.assert_close(counts, expected.float(), atol=0.015, rtol=0)


def test_a_sharp_softmax_still_has_a_negative() -> None:
    similarity = torch.tensor([[1000.0, -1000.0, -900.0]], dtype=torch.float32)
    column, exists = draw_negatives(similarity, torch.tensor([[True, False, False]]))
    assert column.tolist() == [2]
    assert exists.tolist() == [True]


def test_where_everything_is_right_there_is_no_negative() -> None:
    same = torch.tensor([[True, True], [True, False]])
    columns, exists = draw_negatives(torch.randn(2, 2), same)
    assert exists.tolist() == [False, True]
    assert columns[1] == 1
    assert 0 <= columns[0] < 2


def test_the_generator_of_torch_draws() -> None:
    similarity, same = torch.zeros(50, 9), torch.zeros(50, 9, dtype=torch.bool)
    torch.manual_seed(1)
    first = draw_negatives(similarity, same)[0]
    torch.manual_seed(1)
    assert torch.equal(draw_negatives(similarity, same)[0], first)
    assert not torch.equal(draw_negatives(similarity, same)[0], first)


def test_the_loss_and_its_gradient_leave_out_negatives_that_are_none() -> None:
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slow = logits.detach().double().requires_grad_()
    images, texts = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    loss = matching_loss(logits, images, texts)
    expected = reference.matching_loss(slow[:3], [slow[3], slow[5], slow[7], slow[8]])
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, slow.grad.float(), atol=1e-6, rtol=1e-6)


def test_without_any_negative_the_pairs_count() -> None:
    logits = torch.randn(6, 2)
    none = torch.zeros(2, dtype=torch.bool)
    torch.testing.assert_close(matching_loss(logits, none, none), reference.matching_loss(logits[:2], []))


def test_the_loss_is_fp32_under_autocast() -> None:
    logits, every = torch.randn(6, 2), torch.ones(2, dtype=torch.bool)
    plain = matching_loss(logits, every, every)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matching_loss(logits, every, every), plain)
        assert matching_loss(logits.bfloat16(), every, every).dtype == torch.float32


def test_added_columns_are_masked() -> None:
    tokens = {"input_ids": torch.tensor([[2, 7, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    longer = padded(tokens, 5)
    assert longer["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert longer["input_ids"].tolist()[0][:3] == [2, 7, 3]
    assert gathered_tokens(tokens) is tokens
