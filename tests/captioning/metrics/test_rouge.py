"""ROUGE-L equals its formula, and the bits find the same longest common subsequences as the recursion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import captions as reference
from xmodal_kedro.captioning.metrics.rouge import common_length, rouge_l


@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
def test_common_length_equals_the_recursion(a, b):
    assert common_length(a, b) == reference.common(a, b)


def test_common_length_of_long_texts():
    rng = np.random.default_rng(0)
    a, b = (list(rng.choice(list("abcde"), size=size)) for size in (130, 65))  # more bits than a machine word
    assert common_length(a, b) == common_length(b, a) == reference.common(a, b)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_formula(seed):
    captions, references = reference.random_captions(np.random.default_rng(seed), 30)
    scores = rouge_l(captions, references)
    expected = [reference.rouge_l(*pair) for pair in zip(captions, references, strict=True)]
    assert scores.each == pytest.approx(expected)
    assert scores.value == pytest.approx(np.mean(expected))


def test_precision_and_recall_come_from_their_best_references():
    caption = list("abcd")
    references = [list("ab"), list("abcxyzuvw")]  # recall 1 with the first, precision 3/4 with the second
    f = (1 + 1.2**2) * 0.75 * 1 / (1 + 1.2**2 * 0.75)
    assert rouge_l([caption], [references]).value == pytest.approx(f)


def test_empty_caption_and_empty_reference():
    assert rouge_l([[], list("ab")], [[list("ab")], [[], list("ab")]]).each.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"without a reference.*: 1"):
        rouge_l([["a"], ["a"]], [[["a"]], [[]]])
