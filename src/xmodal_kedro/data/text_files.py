"""Bytes of any user's text file become text; what cannot be decoded is marked in place, so that only its line is lost.

Encodings are found in this order: the source's own `encoding`, a byte order mark (UTF-8, UTF-16, UTF-32), UTF-8, and
GB18030 if the bytes read far better as Chinese than as UTF-8. A UTF-8 file with a few bad bytes stays a UTF-8 file.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

BAD_BYTES = "\udcff"  # a lone surrogate: no decoder gives one, no encoder takes one
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile("[^\0-\x7f]")
_MARKS = (  # UTF-32 first: its little-endian mark begins with the one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 20


class EncodingError(ValueError):
    """The bytes are no text in any encoding that we look for, or the given encoding does not exist."""


def _mark_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BAD_BYTES, error.end


codecs.register_error("xmodal.mark_bad_bytes", _mark_bad_bytes)


def read_text(path: Path, encoding: str | None = None) -> str:
    """Read a text file with `decode`.

    Raises:
        EncodingError: Naming the file and the fix.
        OSError: The file cannot be read.
    """
    try:
        return decode(path.read_bytes(), encoding)
    except EncodingError as error:
        raise EncodingError(f"{path}: {error}") from None


def decode(data: bytes, encoding: str | None = None) -> str:
    """Decode bytes, with every line end (CRLF, CR) turned into LF and without a byte order mark.

    Args:
        data: The whole file.
        encoding: A Python codec; by default it is found out.

    Returns:
        The text. Each undecodable piece is one `BAD_BYTES` mark; `is_undecodable` finds it.

    Raises:
        EncodingError: Unknown encoding, or binary data.
    """
    encoding = encoding or detect(data)
    try:
        text = data.decode(encoding, "xmodal.mark_bad_bytes")
    except LookupError:
        raise EncodingError(f"encoding '{encoding}' does not exist: use a Python codec, such as gb18030") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def detect(data: bytes) -> str:
    """Name the encoding of bytes: the codec to decode them with.

    Raises:
        EncodingError: The bytes are binary, or UTF-16 without a byte order mark.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if data[:_SAMPLE].count(0) > len(data[:_SAMPLE]) // 10:
        raise EncodingError("is binary, or UTF-16 without a byte order mark: set 'encoding' (utf-16-le or utf-16-be)")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "gb18030" if _reads_as_chinese(data) else "utf-8"
    return "utf-8"


def is_undecodable(text: str) -> bool:
    """Whether a text holds a mark of bad bytes, or another lone surrogate, which no file can store."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def split_lines(text: str) -> list[str]:
    """Split at LF only (a form feed or U+2028 may stand inside a caption); no empty line after the last LF."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def _reads_as_chinese(data: bytes) -> bool:
    """Whether bytes that are not pure UTF-8 are GB18030 rather than UTF-8 with accidents.

    Two tests. UTF-8 must have more bad pieces than good characters: one broken byte among Chinese UTF-8 text stays
    UTF-8. And what GB18030 makes of the bytes must be mostly everyday characters (those of GB2312): a Latin-1 accent in
    an English file pairs with the next letter to a rare character, if to any.
    """
    sample = data[:_SAMPLE]
    as_utf8 = sample.decode("utf-8", "xmodal.mark_bad_bytes")
    bad = as_utf8.count(BAD_BYTES)
    if bad == 0:  # the accident lies behind a megabyte of good UTF-8, or of ASCII
        sample = b"\n".join(line for line in data.splitlines() if not line.isascii())[:_SAMPLE]
        as_utf8 = sample.decode("utf-8", "xmodal.mark_bad_bytes")
        bad = as_utf8.count(BAD_BYTES)
    if bad <= len(_NOT_ASCII.findall(as_utf8)) - bad:
        return False
    characters = _NOT_ASCII.findall(sample.decode("gb18030", "xmodal.mark_bad_bytes"))
    everyday = "".join(characters).encode("gb2312", "ignore")
    return len(everyday) // 2 >= 0.7 * len(characters)
