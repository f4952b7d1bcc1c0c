"""Distinct captions and seq-rep-n by hand, and against a count that is written from the formula."""

import math
import random

import pytest

from xmodal_kedro.captioning.diversity import distinct_captions, repetition, repetitions


def test_distinct_captions_by_hand() -> None:
    assert distinct_captions(["a", "b", "a", "c"]) == 0.75
    assert distinct_captions(["a"] * 5) == 0.2
    assert distinct_captions(["", "a"]) == 1.0
    assert math.isnan(distinct_captions([]))


def test_repetition_by_hand() -> None:
    once, loop, short = list("abcdefg"), list("ababababab"), list("aaa")
    assert repetitions([once, loop, short, []]).tolist() == pytest.approx([0.0, 1 - 2 / 7, 0.0, 0.0])
    assert repetition([once, loop, short, []]) == pytest.approx((5 / 7) / 4)
    assert repetitions([list("aaaa"), list("aaaaa")]).tolist() == [0.0, 0.5]
    assert repetitions([list("aab")], n=1).tolist() == pytest.approx([1 / 3])
    assert math.isnan(repetition([]))
    assert repetitions([]).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_counts_what_was_there_before(n: int) -> None:
    draw = random.Random(n)
    captions = [[draw.choice("ab") for _ in range(draw.randrange(16))] for _ in range(50)]
    expected = []
    for tokens in captions:
        places = range(len(tokens) - n + 1)
        again = [any(tokens[i : i + n] == tokens[j : j + n] for j in range(i)) for i in places]
        expected.append(sum(again) / len(again) if again else 0.0)
    assert repetitions(captions, n).tolist() == pytest.approx(expected)
    assert repetition(captions, n) == pytest.approx(sum(expected) / 50)
    assert max(expected) > 0.3
