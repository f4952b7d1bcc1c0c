"""Bytes of every origin become the same text, and a bad byte costs its line only."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_kedro.data.text_files import EncodingError, decode, detect, is_undecodable, read_text, split_lines

CHINESE = "图片,描述\na.jpg,草地上的狗。\nb.jpg,一个女人走在街道上\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk", "utf-32"])
def test_encodings_are_found(encoding: str) -> None:
    assert decode(CHINESE.encode(encoding)) == CHINESE


def test_big_endian_utf16_is_found() -> None:
    assert decode(codecs.BOM_UTF16_BE + CHINESE.encode("utf-16-be")) == CHINESE


def test_given_encoding_wins() -> None:
    assert decode("é".encode("latin-1"), "latin-1") == "é"
    assert decode("這是一隻狗".encode("big5"), "big5") == "這是一隻狗"
    assert decode("\ufeff犬".encode(), "utf-8") == "犬"


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"])
def test_line_ends(ends: str) -> None:
    assert decode(f"a{ends}b{ends}{ends}c".encode()) == "a\nb\n\nc"


@pytest.mark.parametrize("bad", [b"\xff", b"\xe6\x97", b"\x80", b"\xc0\xaf", b"\xed\xa0\x80"])
def test_one_bad_byte_in_chinese_utf8_marks_its_line_only(bad: bytes) -> None:
    lines = CHINESE.encode().split(b"\n")
    lines[1] += bad
    found = split_lines(decode(b"\n".join(lines)))
    assert [is_undecodable(line) for line in found] == [False, True, False]
    assert found[2] == "b.jpg,一个女人走在街道上"


@pytest.mark.parametrize("word", ["café", "naïve", "Zoë stands", "über"])
def test_latin1_accent_in_english_is_no_chinese(word: str) -> None:
    data = b"a dog\n" + f"a {word} here\n".encode("latin-1") + b"a cat\n"
    assert [is_undecodable(line) for line in split_lines(decode(data))] == [False, True, False]


def test_bad_byte_behind_a_megabyte_of_english() -> None:
    data = b"a dog on the grass\n" * 70_000 + "草地上的狗\n".encode("gb18030")
    assert decode(data).endswith("草地上的狗\n")
    assert decode(data[:-11] + "草地上的狗\n".encode() + b"\xff\n").endswith("草地上的狗\n\udcff\n")


def test_one_bad_byte_in_gb18030_marks_its_line_only() -> None:
    lines = CHINESE.encode("gb18030").split(b"\n")
    lines[2] += b"\xff"
    assert [is_undecodable(line) for line in split_lines(decode(b"\n".join(lines)))] == [False, False, True]


def test_odd_byte_at_the_end_of_utf16() -> None:
    assert [is_undecodable(line) for line in split_lines(decode("a\nb\n".encode("utf-16") + b"x"))] == [0, 0, 1]


@pytest.mark.parametrize("data", [b"\x00\x01\x02" * 40, "picture".encode("utf-16-le")])
def test_binary_is_refused_with_the_fix(data: bytes) -> None:
    with pytest.raises(EncodingError, match="utf-16-le"):
        detect(data)


def test_unknown_encoding_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(EncodingError, match=r"a\.csv: encoding 'klingon'"):
        read_text(tmp_path / "a.csv", "klingon")


def test_empty_file_and_separators_inside_a_line() -> None:
    assert decode(b"") == ""
    assert split_lines("") == []
    assert split_lines("a\x0c\u2028b\n\nc") == ["a\x0c\u2028b", "", "c"]


@settings(max_examples=100, deadline=None)
@given(
    # A NUL behind the mark of UTF-16 is the mark of UTF-32: texts hold none.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
)
def test_any_text_survives_a_byte_order_mark(text: str, encoding: str) -> None:
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert decode(text.encode(encoding)) == expected
