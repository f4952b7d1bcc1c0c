"""Characters: the order of a learned vocabulary, texts there and back, and files that are none."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal_kedro.models.backbone import ArchitectureError
from xmodal_kedro.models.characters import CLS, PAD, SEP, UNK, Characters

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHARACTERS = Characters.learn(["一只狗在草地上", "一只猫", "a dog"])
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\v\f\r\x85\u2028\u2029"), max_size=12)


def test_special_tokens_have_the_published_ids() -> None:
    assert (PAD, UNK, CLS, SEP) == (0, 1, 2, 3)
    assert list(CHARACTERS.tokens[:4]) == SPECIAL
    assert (CHARACTERS.pad, CHARACTERS.unknown, CHARACTERS.start, CHARACTERS.end) == (0, 1, 2, 3)


def test_characters_are_in_the_order_of_count_then_of_code_point() -> None:
    # 一 twice, 只 twice, blank and letters once: 0x20 < a < d < g < o < 0x4e00 ...
    assert list(CHARACTERS.tokens[4:]) == ["一", "只", " ", "a", "d", "g", "o", "上", "在", "地", "狗", "猫", "草"]


@given(st.lists(TEXTS, min_size=1).filter(any), st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_matter(texts: list[str], random: Any) -> None:
    learned = Characters.learn(texts)
    counts = Counter("".join(texts))
    tokens = learned.tokens[4:]
    assert sorted(tokens) == sorted(counts)
    for left, right in itertools.pairwise(tokens):
        assert counts[left] > counts[right] or (counts[left] == counts[right] and ord(left) < ord(right))
    random.shuffle(texts)
    assert Characters.learn(iter(texts)) == learned


def test_a_limit_leaves_out_the_rarest() -> None:
    assert Characters.learn(["aab", "ba", "c"], limit=6).tokens == (*SPECIAL, "a", "b")
    with pytest.raises(ArchitectureError, match="4 tokens has no room for characters: special ones are 4"):
        Characters.learn(["a"], limit=4)
    for nothing in ([], ["", ""]):
        with pytest.raises(ArchitectureError, match="no texts to learn"):
            Characters.learn(nothing)


def test_a_text_has_one_beginning_and_one_end_however_long_it_is() -> None:
    assert CHARACTERS.ids("一只狗", 100) == [CLS, 4, 5, 14, SEP]
    assert CHARACTERS.ids("一只狗", 5) == [CLS, 4, 5, 14, SEP]
    assert CHARACTERS.ids("一只狗", 4) == [CLS, 4, 5, SEP]
    assert CHARACTERS.ids("一只狗", 2) == CHARACTERS.ids("", 2) == [CLS, SEP]
    assert CHARACTERS.ids("龙a", 9) == [CLS, UNK, CHARACTERS.tokens.index("a"), SEP]
    with pytest.raises(ValueError, match="max_length is 1"):
        CHARACTERS.ids("a", 1)


def test_the_names_of_special_tokens_are_spelt_in_a_text() -> None:
    assert CHARACTERS.ids("[SEP]", 20) == [CLS, *[UNK] * 5, SEP]


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    tokens = CHARACTERS.batch(["一", "", "一只狗"], 4)
    assert tokens["input_ids"].tolist() == [[2, 4, 3, 0], [2, 3, 0, 0], [2, 4, 5, 3]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert CHARACTERS.batch(["一"], 100)["input_ids"].shape == (1, 3)
    for values in (*tokens.values(), *CHARACTERS.batch([], 100).values()):
        assert values.dtype == torch.long
    assert CHARACTERS.batch([], 100)["input_ids"].shape == (0, 2)


@given(st.lists(TEXTS, max_size=5))
def test_ids_are_spelt_back_to_the_text(texts: list[str]) -> None:
    characters = Characters.learn([*texts, "x"])
    for text, row in zip(texts, characters.batch(texts, 100)["input_ids"], strict=True):
        assert characters.text(row.tolist()) == text  # a list as decoders keep it,
        assert characters.text(row) == text  # or a tensor


def test_line_breaks_are_blanks() -> None:
    characters = Characters.learn(["a\nb", "a\tb\r"])
    assert characters.tokens == (*SPECIAL, " ", "a", "b")
    assert characters.text(characters.ids("b\n\u2028a", 100)) == "b  a"
    assert characters.ids("a\nb", 4) == characters.ids("a b", 4)


def test_english_is_spelt_with_its_blanks() -> None:
    characters = Characters.learn(["A dog runs."])
    assert characters.text(characters.ids("A dog runs.", 100)) == "A dog runs."
    assert characters.text([UNK, CLS, 4, SEP, PAD]) == characters.tokens[4]


def test_a_vocabulary_that_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "vocab.json"
    CHARACTERS.write(file)
    assert Characters.read(file) == CHARACTERS
    assert json.loads(file.read_text(encoding="utf-8"))["狗"] == 14
    assert "狗" in file.read_text(encoding="utf-8")  # not escaped: people read it
    assert Characters.read(file) != Characters.learn(["别的"])


def test_the_order_of_a_published_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 5, "[SEP]": 3, "狗": 4, "[CLS]": 2, "[PAD]": 0, "[UNK]": 1}')
    characters = Characters.read(tmp_path / "vocab.json")
    assert characters.tokens == (*SPECIAL, "狗", "a")
    assert len(characters) == 6


SOUND = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "a": 3}, r"\[SEP\] 3; found: \[PAD\] 0, \[UNK\] 1, \[CLS\] 2$"),
        ({"a": 0}, "found: none of them"),
        ({**SOUND, "[UNK]": 0, "[PAD]": 1}, r"the ids \[PAD\] 0, .* found: \[UNK\] 0, \[PAD\] 1"),
        ({**SOUND, "a": 4, "b": 4}, "'a' and 'b' share the id 4"),
        ({**SOUND, "a": 4, "b": 6}, "no token has the id 5, though there are 6 of them"),
        ({**SOUND, "a": -1}, "whole numbers from 0, that of 'a' is -1"),
        ({**SOUND, "a": "4"}, "that of 'a' is '4'"),
        ({**SOUND, "a": True}, "that of 'a' is True"),
        ({}, "found: none of them"),
        (["[PAD]"], "it is a list"),
        (None, "it is a NoneType"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_clear_error(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ArchitectureError, match=rf"{file} is no vocabulary of characters.*{message}"):
        Characters.read(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=rf"there is no vocabulary {tmp_path}/none.json"):
        Characters.read(tmp_path / "none.json")
    for content in (b"[PAD]\n[UNK]\n", b'{"\xff": 0}'):
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(ArchitectureError, match=r"vocab.txt is no JSON in UTF-8"):
            Characters.read(tmp_path / "vocab.txt")


def test_a_token_is_there_once() -> None:
    with pytest.raises(ArchitectureError, match="more than once: a"):
        Characters((*SPECIAL, "a", "a"))
