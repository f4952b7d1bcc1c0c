"""Blocks side by side: results in order, errors of the first block, and torch's threads as they were."""

import threading
import time

import numpy as np
import pytest
import torch
from scipy import sparse

from xmodal_kedro.retrieval.rank import rank_both
from xmodal_kedro.retrieval.scores import EmbeddingScores
from xmodal_kedro.retrieval.scores.recent import Recent
from xmodal_kedro.retrieval.workers import side_by_side, threads

CPU = torch.device("cpu")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_results_come_in_the_order_of_the_blocks(three_threads, count):
    def slow_at_first(block: int) -> int:
        time.sleep(0.01 * (block % 3 == 0))
        return block * block

    assert list(side_by_side(slow_at_first, range(count), CPU)) == [block * block for block in range(count)]


def test_each_thread_computes_alone_and_the_callers_setting_returns(three_threads):
    seen = set()

    def look(_: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.02)
        return torch.get_num_threads()

    assert set(side_by_side(look, range(9), CPU)) == {1}
    assert len(seen) == 3
    assert threading.get_ident() not in seen
    assert threads(CPU) == 3
    later = []
    one = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    one.start()
    one.join()
    assert later == [3]  # what a thread begins with that is started afterwards


def test_the_first_block_in_order_that_fails_raises_and_the_rest_is_dropped(three_threads):
    begun = []

    def fail(block: int) -> None:
        begun.append(block)
        time.sleep(0.02 if block == 1 else 0.0)
        if block in (1, 2):
            raise ValueError(f"block {block}")

    with pytest.raises(ValueError, match="block 1"):
        list(side_by_side(fail, range(1000), CPU))
    assert len(begun) < 1000
    assert threads(CPU) == 3


def test_inside_a_thread_blocks_follow_one_another(three_threads):
    def inner(_: int) -> list[int]:
        return list(side_by_side(lambda _: threading.get_ident(), range(4), CPU))

    assert all(len(set(found)) == 1 for found in side_by_side(inner, range(6), CPU))


def test_gradients_are_off_where_they_are_off_for_the_caller(three_threads):
    with torch.no_grad():
        assert list(side_by_side(lambda _: torch.is_grad_enabled(), range(4), CPU)) == [False] * 4
    assert list(side_by_side(lambda _: torch.is_grad_enabled(), range(4), CPU)) == [True] * 4


def test_what_was_made_lately_is_kept_for_as_many_blocks_as_threads(three_threads):
    recent, made = Recent[int](CPU), []

    def make(block: slice) -> int:
        made.append(block.start)
        return block.start

    for start in (0, 1, 2, 0, 1, 2, 3, 1, 2, 0):
        assert recent.get(slice(start, start + 1), make) == start
    assert made == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("tile", [(1, 5), (3, 2), (7, 64)])
@pytest.mark.parametrize("k", [0, 4])
def test_threads_cannot_change_a_rank(tile, k):
    """Both directions write to what the blocks share; vectors repeat, so that ties are there to be lost."""
    rng = np.random.default_rng(0)
    queries = rng.integers(-1, 2, (20, 4)).astype(np.float32)
    gallery = rng.integers(-1, 2, (30, 4)).astype(np.float32)
    truth = sparse.csr_array(rng.random((20, 30)) < 0.15)
    found, before = [], torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(rank_both(EmbeddingScores(queries, gallery), truth, k, tile=tile))
    torch.set_num_threads(before)
    scores = queries @ gallery.T
    for number, rankings in enumerate(found):
        for mine, first in zip(rankings, found[0], strict=True):
            np.testing.assert_array_equal(mine.relevant_ranks, first.relevant_ranks, err_msg=f"{number}")
            np.testing.assert_array_equal(mine.top_rows, first.top_rows)
    for ranking, matrix, right in zip(found[-1], (scores, scores.T), (truth, truth.T.tocsr()), strict=True):
        slow = []
        for row, wanted in enumerate(np.split(right.indices, right.indptr[1:-1])):
            others = np.setdiff1d(np.arange(matrix.shape[1]), wanted)
            for item in wanted:
                mates = sorted(wanted, key=lambda one, row=row: (-matrix[row, one], one))
                slow.append(1 + mates.index(item) + int((matrix[row, others] >= matrix[row, item]).sum()))
        np.testing.assert_array_equal(ranking.relevant_ranks, slow)
