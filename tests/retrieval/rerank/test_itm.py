"""Logits of pairs are those of each pair alone, and nothing is computed twice or kept for later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.small import small_backbone
from tests.retrieval.matching import SIZE, WIDTH, Matching
from xmodal_kedro.retrieval.rerank import itm
from xmodal_kedro.retrieval.rerank.itm import combined, match_logits

TEXTS = ["a red car", "bus", "", "a woman in a long blue coat, seen from behind", "van"]
PIXELS = np.random.default_rng(0).integers(0, 256, (30, SIZE, SIZE, 3), dtype=np.uint8)


def some_pairs(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 30, count), rng.integers(0, len(TEXTS), count)


@torch.no_grad()
def alone(backbone: Matching, image: int, text: int) -> float:
    backbone.eval()
    pixels = backbone.image_transform(train=False)(torch.from_numpy(PIXELS[image : image + 1]))
    return float(backbone.match(backbone.image_states(pixels), backbone.tokenize([TEXTS[text]]))[0])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_logits_are_those_of_each_pair_alone(batch_size: int) -> None:
    images, captions = some_pairs(41)
    backbone = Matching()
    found = match_logits(backbone, PIXELS, images, TEXTS, captions, batch_size)
    assert found.dtype == np.float32
    expected = [alone(backbone, int(image), int(text)) for image, text in zip(images, captions, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_images_are_encoded_once_and_pairs_matched_once_in_small_batches() -> None:
    images, captions = some_pairs(200)
    backbone = Matching()
    match_logits(backbone, PIXELS, images, TEXTS, captions, batch_size=4)
    distinct = set(zip(images.tolist(), captions.tolist(), strict=True))
    assert len(distinct) < 200
    assert sum(backbone.images_seen) == sum(backbone.memories_seen) == len(set(images.tolist()))
    assert sum(pairs for pairs, _ in backbone.pairs_seen) == len(distinct)
    assert max(backbone.images_seen) <= 4  # states of more images are never there
    assert max(pairs for pairs, _ in backbone.pairs_seen) <= 4


def test_texts_of_an_image_are_matched_longest_first_and_trimmed() -> None:
    texts = ["x" * length for length in np.random.default_rng(2).permutation(20)]
    backbone = Matching()
    match_logits(backbone, PIXELS, np.full(20, 7), texts, np.arange(20), batch_size=8)
    assert backbone.pairs_seen == [(8, 19 + 1), (8, 11 + 1), (4, 3 + 1)]


def test_no_more_images_are_in_memory_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images, captions = np.repeat(np.arange(11), 3), np.tile([0, 1, 3], 11)
    expected = match_logits(Matching(), PIXELS, images, TEXTS, captions)
    of_image = 16 * WIDTH * 4  # bytes of its states
    for bound, memories in ((3 * of_image + 5, [1, 3, 3, 1, 1, 2]), (1, [1] * 11), (2**30, [1, 7, 1, 2])):
        monkeypatch.setattr(itm, "MEMORY", bound)
        backbone = Matching()
        found = match_logits(backbone, PIXELS, images, TEXTS, captions, batch_size=8)
        assert backbone.memories_seen == memories  # of 8 images and then of 3; the first of each tells how many fit
        assert sum(pairs for pairs, _ in backbone.pairs_seen) == 33
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_to_match_gives_nothing() -> None:
    nothing = np.empty(0, np.int64)
    assert match_logits(Matching(), PIXELS, nothing, TEXTS, nothing).shape == (0,)
    assert match_logits(Matching(), PIXELS[:0], nothing, [], nothing).shape == (0,)


def test_bf16_is_near_and_training_goes_on_as_before() -> None:
    images, captions = some_pairs(20)
    backbone = Matching().train()
    exact, low = (match_logits(backbone, PIXELS, images, TEXTS, captions, precision=p) for p in ("fp32", "bf16"))
    assert backbone.training
    assert torch.is_grad_enabled()
    assert not np.array_equal(exact, low)
    np.testing.assert_allclose(low, exact, rtol=0.05, atol=0.05 * np.abs(exact).max())


def test_a_backbone_without_head_and_broken_weights_are_named() -> None:
    images, captions = some_pairs(3)
    with pytest.raises(ValueError, match="'open_clip' has no image-text matching head"):
        match_logits(small_backbone("open_clip"), PIXELS, images, TEXTS, captions)
    broken = Matching()
    torch.nn.init.constant_(broken.model["letters"].weight, torch.nan)
    with pytest.raises(ValueError, match=r"gives nan for image row \d+ and the text '"):
        match_logits(broken, PIXELS, images, TEXTS, captions)


def test_formulas_are_as_published() -> None:
    fused, itm = np.array([[0.5, 0.25], [1.0, 0.0]]), np.array([[3.0, -4.0], [0.0, 0.0]], np.float32)
    assert combined(fused, itm, "itm").tolist() == itm.tolist()
    assert combined(fused, itm, "itm_plus_fused").tolist() == [[3.5, -3.75], [1.0, 0.0]]
    np.testing.assert_allclose(combined(fused, itm, "fused_plus_unit_itm"), [[0.5 + 0.6, 0.25 - 0.8], [1.0, 0.0]])


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_blip_matches_as_it_would_each_pair_alone(batch_size: int) -> None:
    backbone = small_backbone("blip")
    pixels = np.random.default_rng(3).integers(0, 256, (6, backbone.image_size, backbone.image_size, 3), dtype=np.uint8)
    images, captions = (part[:15] % size for part, size in zip(some_pairs(15, seed=4), (6, 5), strict=True))
    found = match_logits(backbone, pixels, images, TEXTS, captions, batch_size)
    transform = backbone.image_transform(train=False)
    for logit, image, text in zip(found, images, captions, strict=True):
        with torch.no_grad():
            states = backbone.image_states(transform(torch.from_numpy(pixels[image : image + 1])))
            expected = backbone.match(states, backbone.tokenize([TEXTS[text]]))
        np.testing.assert_allclose(logit, float(expected[0]), rtol=1e-4, atol=1e-5)
    assert found.std() > 0
