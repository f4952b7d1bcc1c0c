"""Dealing rows to batches, reading them, and making the next one meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.small import SIZE, small_backbone
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.training.batches import Pairs, deal, prefetched

TEXTS = ["a red car", "a blue bus that waits at the stop", "a red car", "a dog", "a dog", "a cat"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- deal


@given(
    alike=st.lists(st.integers(-3, 5), min_size=2, max_size=60), batch_size=st.integers(2, 20), seed=st.integers(0, 9)
)
def test_every_row_is_dealt_once_in_even_batches_that_separate_what_is_alike(
    alike: list[int], batch_size: int, seed: int
) -> None:
    batches = deal(np.array(alike), batch_size, rng(seed))
    dealt = sorted(row for batch in batches for row in batch.tolist())
    wanted = math.ceil(len(alike) / batch_size)
    sizes = [len(batch) for batch in batches] + [1] * (wanted - len(batches))
    assert len(dealt) == len(set(dealt)) == len(alike) - (wanted - len(batches))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(map(len, batches), default=2) >= 2
    for value, count in Counter(alike).items():
        for batch in batches:
            # No batch holds more of a kind than the most even sharing leaves it with.
            assert sum(alike[row] == value for row in batch) <= math.ceil(count / wanted)


def test_dealing_is_random_by_the_generator_alone() -> None:
    alike = np.arange(40) // 2
    first, same, other = (deal(alike, 8, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(first, other, strict=True))


def test_a_single_left_over_row_is_left_out() -> None:
    assert [len(batch) for batch in deal(np.arange(3), 2, rng())] in ([2], [2])
    assert [len(batch) for batch in deal(np.arange(5), 3, rng())] in ([3, 2], [2, 3])


@given(
    alike=st.lists(st.integers(-3, 5), min_size=2, max_size=60),
    batch_size=st.integers(4, 20),
    processes=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_processes_share_every_batch_evenly(alike: list[int], batch_size: int, processes: int, seed: int) -> None:
    batches = deal(np.array(alike), batch_size, rng(seed), processes)
    dealt = sorted(row for batch in batches for row in batch.tolist())
    assert len(dealt) == len(set(dealt)) == len(alike) - len(alike) % processes
    sizes = [len(batch) for batch in batches]
    assert all(size % processes == 0 and 0 < size <= batch_size for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= processes
    for value, count in Counter(alike).items():
        for batch in batches:
            # As even as can be in the rounds that all batches get, and once more in those of the longer ones.
            shared = math.ceil(count / len(batches))
            assert sum(alike[row] == value for row in batch) <= shared + processes


@pytest.mark.parametrize(("rows", "batch_size", "processes"), [(24, 6, 2), (24, 6, 3), (96, 32, 4), (10, 2, 2)])
def test_where_shares_are_whole_all_numbers_of_processes_deal_the_same(
    rows: int, batch_size: int, processes: int
) -> None:
    alike = np.arange(rows) // 3
    alone, together = deal(alike, batch_size, rng()), deal(alike, batch_size, rng(), processes)
    assert [batch.tolist() for batch in alone] == [batch.tolist() for batch in together]


def test_fewer_rows_than_processes_are_no_batch() -> None:
    assert deal(np.arange(3), 8, rng(), 4) == []


# --- pairs


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone("open_clip")


def examples(**columns: list[int]) -> pd.DataFrame:
    given = {"text": TEXTS, "image_row": [5, 4, 3, 2, 1, 0], "key": [0, 1, 0, 2, 2, 3], **columns}
    return pd.DataFrame(given)


def images(count: int = 6) -> np.ndarray:
    return rng().integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_batches_bring_the_pixels_tokens_and_keys_of_their_rows(backbone: Backbone, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", images())
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    rows = np.array([3, 0, 4])
    pairs = Pairs(backbone, pixels, examples())
    assert np.array_equal(pairs.images(rows).numpy(), images()[[2, 5, 1]])
    tokens, keys = pairs.captions(rows)
    expected = backbone.tokenize([TEXTS[row] for row in rows])
    assert torch.equal(tokens["input_ids"], expected["input_ids"])
    assert torch.equal(tokens["attention_mask"], expected["attention_mask"])
    assert keys.tolist() == [2, 0, 2]


def test_what_repeats_most_is_kept_apart(backbone: Backbone) -> None:
    def alike(**columns: list[int]) -> list[int]:
        return Pairs(backbone, images(), examples(**columns)).alike.tolist()

    different = list(range(6))
    assert alike(key=[7, 7, 7, 8, 8, 8]) == [0, 0, 0, 1, 1, 1]
    assert alike(image_row=[1, 1, 0, 0, 0, 1], key=different) == [0, 0, 1, 1, 1, 0]
    assert alike(image_row=different, key=different) == [0, 1, 0, 2, 2, 3]  # the captions


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_row": [0, 1, 2, 3, 4, 6]}, "pair 5 of the examples names image row 6, of 6 packed images"),
        ({"image_row": [0, -1, 2, 3, 4, 5]}, "pair 1 of the examples names image row -1"),
        ({"text": ["a", "b", None, "c", "d", "e"]}, "pair 2 of the examples has no text"),
    ],
)
def test_pairs_that_cannot_be_are_refused(backbone: Backbone, columns: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairs(backbone, images(), examples(**columns))


@pytest.mark.parametrize("count", [0, 1])
def test_one_pair_is_not_enough(backbone: Backbone, count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 pairs, there are {count}"):
        Pairs(backbone, images(), examples().head(count))


# --- prefetched


def threads() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_in_their_order(count: int) -> None:
    assert list(prefetched(range(count))) == list(range(count))
    assert threads() == 0


def test_the_next_item_is_made_while_one_is_used() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(3):
            made.append(item)
            yield item

    with closing(prefetched(items())) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 5
        while made != [0, 1] and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made == [0, 1]  # one ahead and no further
    assert threads() == 0


def test_errors_arrive_after_the_items_before_them() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    ahead = prefetched(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert threads() == 0


def test_the_thread_ends_with_whoever_used_its_items() -> None:
    with closing(prefetched(iter(int, 1))) as ahead:
        assert next(ahead) == 0
        assert threads() == 1
    assert threads() == 0
