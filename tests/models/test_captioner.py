"""Captions of a captioner: whole against the formulas and against its own steps, and what their loss counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference import gpt as slow
from xmodal_kedro.models.captioner import Captioner, caption_loss
from xmodal_kedro.models.characters import CLS, PAD, SEP, Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes

LETTERS = "abcdefgh"
VOCABULARY = Characters.learn([LETTERS])
SIZES = GPTSizes(vocab_size=4 + len(LETTERS), layers=2, heads=2, width=16, block_size=8, dropout=0.1)


def some_captioner(seed: int = 0) -> Captioner:
    captioner = Captioner(nn.Sequential(nn.Flatten(), nn.Linear(48, SIZES.width)), GPT(SIZES), VOCABULARY)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return captioner.eval()


def some_pixels(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def captions(*texts: str, length: int = 8) -> Tensor:
    """Ids [B, length]: start, letters, end, padding."""
    rows = [VOCABULARY.ids(text, length) for text in texts]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


UNEVEN = captions("abcabc", "", "hg", "dead")


@torch.no_grad()
def test_logits_are_those_of_the_formulas() -> None:
    captioner, pixels = some_captioner(), some_pixels(4)
    found = captioner(pixels, UNEVEN)
    assert found.shape == (4, 8, SIZES.vocab_size)
    weights = {name: tensor.double() for name, tensor in captioner.gpt.state_dict().items()}
    for row, image in enumerate(captioner.encode(pixels).double()):
        ids = UNEVEN[row].tolist()
        expected = slow.caption_logits(weights, image, ids, SIZES.layers, SIZES.heads)
        torch.testing.assert_close(found[row].double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert found.std(0).max() > 0.1


@torch.no_grad()
def test_the_image_has_no_position_and_the_first_token_has_the_first() -> None:
    captioner, pixels = some_captioner(), some_pixels(4)
    before = captioner(pixels, UNEVEN)
    captioner.gpt.positions[0] += 1.0 - torch.arange(16) / 8
    after = captioner(pixels, UNEVEN)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=0, rtol=0)
    assert ((after[:, 1] - before[:, 1]).abs().amax(1) > 1e-3).all()


@torch.no_grad()
def test_a_token_changes_no_logits_of_itself_or_of_earlier_ones() -> None:
    captioner, pixels = some_captioner(), some_pixels(4)
    before = captioner(pixels, UNEVEN)
    for place in range(8):
        ids = UNEVEN.clone()
        ids[:, place] = (ids[:, place] + 1) % SIZES.vocab_size
        after = captioner(pixels, ids)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1], atol=1e-6, rtol=1e-6)
        assert ((after[:, place + 1 :] - before[:, place + 1 :]).abs().amax(dim=(0, 2)) > 1e-3).all()


@torch.no_grad()
def test_steps_give_the_logits_of_whole_captions() -> None:
    captioner, pixels = some_captioner(), some_pixels(4)
    whole, state = captioner(pixels, UNEVEN), captioner.begin(pixels)
    for place in range(7):
        logits, state = captioner.step(UNEVEN[:, place], state)
        torch.testing.assert_close(logits, whole[:, place + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_steps_after_rows_were_selected_give_the_logits_of_whole_captions() -> None:
    """Beams of two images begin alike, part, change places, and the first image's are dropped."""
    captioner, pixels = some_captioner(), some_pixels(2)
    state = captioner.begin(pixels, steps=6)
    _, state = captioner.step(torch.tensor([CLS, CLS]), state)
    images, texts = [0, 0, 0, 1, 1, 1], [[CLS]] * 6
    for rows, ids in [
        ([0, 0, 0, 1, 1, 1], [5, 6, 7, 7, 8, 9]),
        ([2, 0, 0, 5, 5, 4], [4, 4, 9, 10, 11, 11]),
        ([5, 3, 3], [SEP, 4, 5]),
        ([1, 2], [6, 6]),
        ([], []),
    ]:
        first = len(texts[0]) == 1
        state = captioner.select(state, torch.tensor(rows, dtype=torch.long))
        images = images if first else [images[row] for row in rows]
        texts = [[*texts[row], token] for row, token in zip(rows, ids, strict=True)] if rows else []
        logits, state = captioner.step(torch.tensor(ids, dtype=torch.long), state)
        assert logits.shape == (len(rows), SIZES.vocab_size)
        for found, image, text in zip(logits, images, texts, strict=True):
            whole = captioner(pixels[image : image + 1], torch.tensor([[*text, PAD]]))
            torch.testing.assert_close(found, whole[0, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vectors_are_taken_as_the_pixels_that_they_came_from() -> None:
    captioner, pixels = some_captioner(), some_pixels(4)
    vectors = captioner.encode(pixels)
    torch.testing.assert_close(captioner(vectors, UNEVEN), captioner(pixels, UNEVEN))
    ids = UNEVEN[:, 0]
    by_vectors, _ = captioner.step(ids, captioner.begin(vectors))
    by_pixels, _ = captioner.step(ids, captioner.begin(pixels))
    torch.testing.assert_close(by_vectors, by_pixels)


def test_steps_keep_no_gradient() -> None:
    captioner = some_captioner()
    logits, state = captioner.step(UNEVEN[:, 0], captioner.begin(some_pixels(4)))
    assert not logits.requires_grad
    assert not captioner.step(UNEVEN[:2, 0], captioner.select(state, torch.tensor([3, 1])))[0].requires_grad


def test_image_and_text_both_learn() -> None:
    captioner = some_captioner()
    caption_loss(captioner(some_pixels(4), UNEVEN), UNEVEN).backward()
    for name, parameter in captioner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_two_images_learn_their_captions() -> None:
    torch.manual_seed(0)
    captioner = Captioner(nn.Sequential(nn.Flatten(), nn.Linear(48, SIZES.width)), GPT(SIZES), VOCABULARY)
    pixels, ids = some_pixels(2), captions("abc", "hhgfe")
    optimiser = torch.optim.AdamW(captioner.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        caption_loss(captioner(pixels, ids), ids).backward()
        optimiser.step()
    captioner.eval()
    state, token, written = captioner.begin(pixels), torch.tensor([CLS, CLS]), []
    for _ in range(6):
        logits, state = captioner.step(token, state)
        token = logits.argmax(1)
        written.append(token)
    wanted, found = ids[:, 1:7], torch.stack(written, dim=1)
    assert torch.equal(found[wanted != PAD], wanted[wanted != PAD])


def explicit_loss(logits: Tensor, ids: Tensor, *, ignore: bool) -> float:
    """Mean of -log softmax of the right tokens, one after the other."""
    terms = []
    for scores, token in zip(logits.double().flatten(0, 1), ids.flatten().tolist(), strict=True):
        if token != PAD or not ignore:
            terms.append(-math.log(math.exp(scores[token]) / sum(math.exp(score) for score in scores)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("ignore", [True, False])
def test_the_loss_is_that_of_the_tokens(ignore: bool) -> None:
    logits = torch.randn(4, 8, SIZES.vocab_size, generator=torch.Generator().manual_seed(2))
    found = caption_loss(logits, UNEVEN, ignore_padding=ignore)
    assert math.isclose(float(found), explicit_loss(logits, UNEVEN, ignore=ignore), rel_tol=1e-5)


def test_more_padding_changes_no_loss_unless_it_counts_as_published() -> None:
    captioner, pixels, short = some_captioner(), some_pixels(4), UNEVEN[1:, :6]
    pixels, long = pixels[1:], F.pad(short, (0, 2), value=PAD)
    losses = [caption_loss(captioner(pixels, ids), ids) for ids in (short, long)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(loss, list(captioner.image_encoder.parameters()))[0] for loss in losses]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    published = [caption_loss(captioner(pixels, ids), ids, ignore_padding=False) for ids in (short, long)]
    assert (published[0] - published[1]).abs() > 1e-3
    assert all((loss - losses[0]).abs() > 1e-3 for loss in published)


def test_logits_at_padding_count_for_nothing_whatever_they_are() -> None:
    logits = torch.randn(4, 8, SIZES.vocab_size, generator=torch.Generator().manual_seed(2))
    wild = logits.masked_fill((UNEVEN == PAD)[:, :, None], torch.nan)
    assert torch.equal(caption_loss(wild, UNEVEN), caption_loss(logits, UNEVEN))


def test_nothing_to_learn_is_no_loss() -> None:
    for rows in (0, 2):
        logits = torch.randn(rows, 5, SIZES.vocab_size, requires_grad=True)
        loss = caption_loss(logits, torch.full((rows, 5), PAD))
        loss.backward()
        assert loss == 0
        assert logits.grad is not None
        assert not logits.grad.any()


def test_the_softmax_is_fp32() -> None:
    logits = torch.randn(4, 8, SIZES.vocab_size, generator=torch.Generator().manual_seed(2)).bfloat16()
    loss = caption_loss(logits, UNEVEN)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, caption_loss(logits.float(), UNEVEN), atol=0, rtol=0)


def test_what_does_not_fit_together_is_refused() -> None:
    captioner = some_captioner()
    with pytest.raises(ValueError, match="vocabulary has 12 tokens, and the GPT was made for 13"):
        Captioner(captioner.image_encoder, GPT(SIZES.model_copy(update={"vocab_size": 13})), VOCABULARY)
    wrong = Captioner(nn.Flatten(), captioner.gpt, VOCABULARY)
    with pytest.raises(ValueError, match=r"vectors of shape \(48,\), and the GPT reads a width of 16.*projection"):
        wrong(some_pixels(4), UNEVEN)
    with pytest.raises(ValueError, match="vectors of shape"):
        captioner.begin(torch.zeros(2, 15))
    state = captioner.begin(some_pixels(4), steps=1)
    _, state = captioner.step(UNEVEN[:, 0], state)
    with pytest.raises(ValueError, match="no room for 1 more"):
        captioner.step(UNEVEN[:, 1], state)
    with pytest.raises(ValueError, match="9 tokens does not fit the 8 positions"):
        captioner(some_pixels(1), torch.zeros(1, 10, dtype=torch.long))
