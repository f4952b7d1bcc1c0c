"""Captions are cleaned by the rule of BLIP: cases written out by hand, and its regular expressions as the reference."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_kedro.config.member import CleanTextConfig
from xmodal_kedro.data.text_cleaning import clean_text, cleaned

BLIP = CleanTextConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A RED Car.", "a red car"),
        ("The color of the vehicle is Red.This is a vehicle.", "the color of the vehicle is red this is a vehicle"),
        ('He said "stop!" (twice); then: #1 ~ *go*', "he said stop twice then 1 go"),
        ("no-one, it's a T-shirt/dress?", "no-one, it's a t-shirt/dress?"),
        ("  two\t\nlines \n", "two lines"),
        ("一只狗。在草地上!", "一只狗。在草地上"),
        ("...", ""),
        ("", ""),
    ],
)
def test_cases_by_hand(text: str, expected: str) -> None:
    assert clean_text(text, BLIP) == expected


def test_each_setting_is_obeyed() -> None:
    assert clean_text("A B. c", CleanTextConfig(lower=False)) == "A B c"
    assert clean_text("a.b-c", CleanTextConfig(blank="-")) == "a.b c"
    assert clean_text("a.b", CleanTextConfig(blank="")) == "a.b"
    assert clean_text("one. two three", CleanTextConfig(max_words=2)) == "one two"
    assert clean_text("word " * 101, BLIP) == " ".join(["word"] * 100)


def regular_expressions(text: str, max_words: int) -> str:
    """The published steps, for texts whose white space is blanks."""
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text


@given(st.text(st.sampled_from(list('aB é.!"()*#:;~,-  ')), max_size=40), st.integers(1, 5))
def test_equals_the_published_regular_expressions(text: str, max_words: int) -> None:
    assert clean_text(text, CleanTextConfig(max_words=max_words)) == regular_expressions(text, max_words)


def test_only_the_texts_of_captions_change() -> None:
    captions = pd.DataFrame({"text": ["A.", None, "A."], "pair_text": ["A.", None, "A."]}, index=[3, 1, 2], dtype="str")
    expected = captions.assign(text=pd.Series(["a", None, "a"], index=captions.index, dtype="str"))
    pd.testing.assert_frame_equal(cleaned(captions, BLIP), expected)
    assert list(captions["text"].dropna()) == ["A.", "A."]
    assert cleaned(captions, None) is captions
    assert cleaned(captions[:0], BLIP).empty
