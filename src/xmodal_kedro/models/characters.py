"""A vocabulary of single characters for texts of any language, learned from them or read from a JSON of tokens and ids.

Chinese is read character by character, as published. English is too, blanks included: nothing is unknown that the train
texts spell, and putting characters side by side gives the text back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from xmodal_kedro.models.backbone import ArchitectureError, Tokens

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNK, CLS, SEP = range(len(SPECIAL))
_BREAK = re.compile("[\t\n\v\f\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Characters:
    """Tokens in the order of their ids, the special ones first; two vocabularies are equal if their tokens are."""

    tokens: tuple[str, ...]
    pad, unknown, start, end = PAD, UNK, CLS, SEP

    def __post_init__(self) -> None:
        """Refuse what is no vocabulary.

        Raises:
            ArchitectureError: Special tokens are missing or elsewhere, or a token is there twice.
        """
        if self.tokens[: len(SPECIAL)] != SPECIAL:
            wanted = ", ".join(f"{token} {row}" for row, token in enumerate(SPECIAL))
            found = {row: token for row, token in enumerate(self.tokens) if token in SPECIAL}
            raise ArchitectureError(
                f"the special tokens of a vocabulary have the ids {wanted}; found: "
                f"{', '.join(f'{token} {row}' for row, token in found.items()) or 'none of them'}"
            )
        if twice := sorted(token for token, count in Counter(self.tokens).items() if count > 1):
            raise ArchitectureError(f"a vocabulary has each token once; more than once: {', '.join(twice[:5])}")

    @classmethod
    def learn(cls, texts: Iterable[str], limit: int | None = None) -> Self:
        """Take every character of the texts, the most frequent first, ties by code point: always the same result.

        Args:
            texts: Train texts, in any order.
            limit: Tokens at most, the special ones included; the rarest characters are left out.

        Raises:
            ArchitectureError: There are no texts, or the limit leaves no room for characters.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_on_one_line(text))
        if not counts:
            raise ArchitectureError("there are no texts to learn a vocabulary of characters from")
        if limit is not None and limit <= len(SPECIAL):
            raise ArchitectureError(
                f"a vocabulary of {limit} tokens has no room for characters: special ones are {len(SPECIAL)}"
            )
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return cls((*SPECIAL, *ranked)[:limit])

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a JSON object of tokens and their ids, as published and as `write` writes it.

        Raises:
            ArchitectureError: There is no such file, or it is no vocabulary: ids are not whole numbers from 0, two
                tokens share one, some are left out, or special tokens are missing.
        """
        if not file.is_file():
            raise ArchitectureError(f"there is no vocabulary {file.absolute()}")
        try:
            ids = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON or of UTF-8
            raise ArchitectureError(f"{file.absolute()} is no JSON in UTF-8: {error}") from error
        try:
            return cls(_in_order(ids))
        except ArchitectureError as error:
            raise ArchitectureError(
                f"{file.absolute()} is no vocabulary of characters, which is {{token: id}}: {error}"
            ) from error

    def write(self, file: Path) -> None:
        """Write what `read` reads."""
        ids = {token: row for row, token in enumerate(self.tokens)}
        file.write_text(json.dumps(ids, ensure_ascii=False, indent=0), encoding="utf-8")

    def __len__(self) -> int:
        """Tokens, the special ones included."""
        return len(self.tokens)

    def ids(self, text: str, max_length: int) -> list[int]:
        """One [CLS], the first `max_length - 2` characters, one [SEP].

        Raises:
            ValueError: Not even the two fit.
        """
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}: a text has at least its [CLS] and its [SEP]")
        known = self._ids
        return [CLS, *(known.get(character, UNK) for character in _on_one_line(text[: max_length - 2])), SEP]

    def batch(self, texts: Sequence[str], max_length: int) -> Tokens:
        """`input_ids` and `attention_mask` of texts, both [B, L], L the longest of them."""
        rows = [self.ids(text, max_length) for text in texts]
        longest = max(map(len, rows), default=2)
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        mask = torch.arange(longest) < lengths[:, None]
        return {"input_ids": ids.view(len(rows), longest), "attention_mask": mask.long()}

    def text(self, ids: Iterable[int]) -> str:
        """Characters side by side, without special tokens."""
        return "".join(self.tokens[row] for row in map(int, ids) if row >= len(SPECIAL))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: row for row, token in enumerate(self.tokens)}


def _on_one_line(text: str) -> str:
    """Line breaks and tabs as blanks, one for one: nobody would want them in a caption."""
    return _BREAK.sub(" ", text)


def _in_order(ids: Any) -> tuple[str, ...]:
    """Tokens in the order of their ids, which are 0, 1, 2 and so on."""
    if not isinstance(ids, dict):
        raise ArchitectureError(f"it is a {type(ids).__name__}")
    if wrong := [token for token, row in ids.items() if type(row) is not int or row < 0]:
        raise ArchitectureError(f"ids are whole numbers from 0, that of {wrong[0]!r} is {ids[wrong[0]]!r}")
    by_id: dict[int, str] = {}
    for token, row in ids.items():
        if row in by_id:
            raise ArchitectureError(f"{by_id[row]!r} and {token!r} share the id {row}")
        by_id[row] = token
    if gaps := sorted(set(range(len(by_id))) - by_id.keys()):
        raise ArchitectureError(f"no token has the id {gaps[0]}, though there are {len(by_id)} of them")
    return tuple(by_id[row] for row in range(len(by_id)))
