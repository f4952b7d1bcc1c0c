"""How text is cut before it is scored: characters, Chinese words, or English words as in the Penn Treebank."""

from __future__ import annotations

import importlib.util
import logging
import unicodedata
from collections.abc import Callable
from types import ModuleType

from xmodal_kedro.captioning.metrics.ptb import ptb

Tokeniser = Callable[[str], list[str]]


def characters(text: str) -> list[str]:
    """Every character in lower case, without blanks and punctuation of any script.

    Punctuation goes as it does for English: a full stop that ends every sentence is no merit of a caption. (Scores
    published with the words' tokeniser of coco-caption over single characters lack ASCII punctuation only.)
    """
    text = visible(text.lower())
    return [character for character in text if not character.isspace() and not _is_punctuation(character)]


def words(text: str) -> list[str]:
    """Words as jieba finds them (accurate mode), in lower case, without blanks and punctuation.

    Raises:
        ModuleNotFoundError: jieba is not installed; the extra that brings it is named.
    """
    found = load_jieba().lcut(visible(text.lower()))
    return [word for word in found if not all(one.isspace() or _is_punctuation(one) for one in word)]


def english(text: str) -> list[str]:
    """Words as `ptb` finds them."""
    return ptb(visible(text))


def visible(text: str) -> str:
    """Without byte order marks, zero-width blanks and joiners, which nobody sees and files are full of."""
    return text if text.isascii() else "".join(one for one in text if unicodedata.category(one) != "Cf")


TOKENISERS: dict[str, Tokeniser] = {"characters": characters, "words": words, "ptb": english}


def load_jieba() -> ModuleType:
    """The library, quiet; ModuleNotFoundError names the extra."""
    if reason := jieba_unavailable():
        raise ModuleNotFoundError(reason)
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary on stderr
    return jieba


def jieba_unavailable() -> str | None:
    """Why there are no Chinese words, or None."""
    if importlib.util.find_spec("jieba"):
        return None
    return "Chinese words need jieba: install xmodal-kedro[captioning], or take the metric's name with _characters."


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
