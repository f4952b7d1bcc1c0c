"""Dealing captions to batches, and reading each image of a batch once."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small_captioner import examples, images, small_captioner
from xmodal_kedro.config.member import AugmentConfig
from xmodal_kedro.training import caption_batches
from xmodal_kedro.training.caption_batches import Captions, Views, deal_captions


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def captions(**changes: bool) -> Captions:
    return Captions(small_captioner().captioner.vocabulary, examples(), len(images()), 10, **changes)


def views(**augment: Any) -> Views:
    transform = small_captioner().image_transform(train=True, augment=AugmentConfig(**augment))
    return Views(images(), transform, 0, torch.device("cpu"))


# --- deal


@given(
    of=st.lists(st.integers(-2, 9), min_size=1, max_size=70),
    batch_size=st.integers(1, 20),
    together=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_every_caption_is_dealt_once_in_even_batches_and_hands_are_not_torn(
    of: list[int], batch_size: int, together: int, seed: int
) -> None:
    together = min(together, batch_size)
    batches = deal_captions(np.array(of), batch_size, together, rng(seed))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(of)))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= together
    if together == 1:
        assert len(batches) == math.ceil(len(of) / batch_size)
        assert max(sizes) - min(sizes) <= 1
    for image, count in Counter(of).items():
        parts = [sum(of[row] == image for row in batch) for batch in batches]
        assert sum(part > 0 for part in parts) <= math.ceil(count / together)
        assert sum(part % together > 0 for part in parts) <= 1  # the smaller hand
    for batch in batches:
        in_order = [of[row] for row in batch]
        changes = sum(one != other for one, other in pairwise(in_order))
        assert changes == len(set(in_order)) - 1  # side by side


def test_batches_are_full_where_images_have_equally_many_captions() -> None:
    batches = deal_captions(np.repeat(np.arange(12), 5), 20, 5, rng())
    assert [len(batch) for batch in batches] == [20, 20, 20]
    assert all(len({row // 5 for row in batch.tolist()}) == 4 for batch in batches)


def test_small_hands_fill_up_what_large_ones_leave_uneven() -> None:
    batches = deal_captions(np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7]), 8, 3, rng())
    assert [len(batch) for batch in batches] == [8, 8]


def test_dealing_is_random_by_the_generator_alone() -> None:
    of = np.arange(60) // 5
    first, again, other = (deal_captions(of, 12, 3, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(first, other, strict=True))
    # Which captions of an image make a hand is drawn, too.
    batches = [batch for seed in range(10) for batch in deal_captions(of, 12, 3, rng(seed))]
    hands = {tuple(sorted(row for row in batch.tolist() if row < 5)) for batch in batches}
    assert len([hand for hand in hands if len(hand) == 3]) > 3


def test_a_hand_that_no_batch_can_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"captions_per_image 5 is more than train.batch_size 4"):
        deal_captions(np.zeros(9, int), 4, 5, rng())


# --- shares


def test_captions_of_an_image_share_it() -> None:
    table = examples()
    rows = np.flatnonzero(table["image_row"].isin([0, 3]))
    share = captions().share(rows)
    assert share.images.tolist() == [0, 3]
    assert share.which.tolist() == [[0, 3].index(row) for row in table["image_row"][rows]]
    tokens = small_captioner().captioner.vocabulary
    assert [tokens.text(ids) for ids in share.ids.tolist()] == table["text"][rows].tolist()
    assert share.weight == 1.0


def test_padding_ends_with_the_longest_caption_unless_it_counts() -> None:
    rows = np.flatnonzero(examples()["text"].str.len() == 1)
    assert captions().share(rows).ids.shape == (len(rows), 3)
    assert captions(counts_padding=True).share(rows).ids.shape == (len(rows), 10)


@pytest.mark.parametrize("count", [1, 2, 5, 22])
@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize("counts_padding", [False, True])
def test_shares_are_a_whole_batch_and_weigh_by_their_tokens(
    count: int, together: int, counts_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_captions, rows = captions(counts_padding=counts_padding), np.arange(count)
    whole = all_captions.share(rows)
    monkeypatch.setattr(caption_batches, "processes", lambda: together)
    shares = []
    for number in range(together):
        monkeypatch.setattr(caption_batches, "rank", lambda number=number: number)
        shares.append(all_captions.share(rows))
    alive = [share for share in shares if share.weight > 0]
    assert len(alive) == min(count, together)
    pad = small_captioner().captioner.vocabulary.pad
    tokens = [share.ids.numel() if counts_padding else int((share.ids != pad).sum()) for share in alive]
    wanted = [one / sum(tokens) for one in tokens]
    assert [share.weight / together for share in alive] == pytest.approx(wanted)
    ids = [row[row != pad].tolist() for share in alive for row in share.ids]
    assert ids == [row[row != pad].tolist() for row in whole.ids]
    of_each = np.concatenate([share.images[share.which.numpy()] for share in alive])
    assert of_each.tolist() == whole.images[whole.which.numpy()].tolist()


# --- views


@pytest.mark.parametrize("augment", [{}, {"scale": [0.3, 0.9], "flip": 0.5}])
def test_views_do_not_depend_on_who_shows_them(augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = np.array([5, 2, 7, 0])
    alone = views(**augment)
    wanted = alone.show(alone.read(batch, batch))
    assert alone.read(batch, batch).images.shape == (4, 6, 6, 3)
    monkeypatch.setattr(caption_batches, "processes", lambda: 2)
    for share in (slice(0, 3), slice(3, 4)):
        other = views(**augment)
        read = other.read(batch[share], batch)
        assert len(read.images) == (4 if augment else len(batch[share]))  # none is read in vain
        assert torch.equal(other.show(read), wanted[share])


def test_vectors_are_shown_as_they_are() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    shown = Views(vectors, None, 0, torch.device("cpu"))
    assert shown.show(shown.read(np.array([3, 1]), np.array([3, 1, 0]))).tolist() == vectors[[3, 1]].tolist()


def test_pixels_are_resized_in_full_precision() -> None:
    rows, shown, others = np.arange(4), views(scale=[0.3, 0.9]), views(scale=[0.3, 0.9])
    with torch.autocast("cpu", torch.bfloat16):
        rough = shown.show(shown.read(rows, rows))
    assert torch.equal(rough, others.show(others.read(rows, rows)))


# --- texts


def test_long_texts_are_cut_and_counted() -> None:
    table = examples().assign(text="红车停在路边上红车停在路边上")
    cut = Captions(small_captioner().captioner.vocabulary, table, 8, 10)
    assert cut.cut == len(table)
    ids = cut.share(np.array([0])).ids[0].tolist()
    assert len(ids) == 10
    assert ids[-1] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "pair 0 of the examples has no text"),
        ({"image_row": 8}, "names image row 8, of 8 packed images"),
    ],
)
def test_what_is_not_there_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captions(small_captioner().captioner.vocabulary, examples().assign(**change), 8, 10)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no captions to train on"):
        Captions(small_captioner().captioner.vocabulary, examples().iloc[:0], 8, 10)
