"""Attribute strings read into parts: vehicle phrases into colour, brand and type, pedestrian vectors into 21 bits.

A vehicle phrase is English in the form of the CVPR 2023 track-2 labels: an article, a colour in small letters, a brand
in capitalised words, a body type, where each part may be missing ("A white Audi.", "This is a Truck", "An orange
Golden Dragon Bus."). Which word is what is said by a vocabulary, learned from train phrases or given as lists.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import VehicleVocabulary

PEDESTRIAN_BITS = 21
PARTS = ("color", "brand", "type")  # of a vehicle phrase, in the order in which they are said

# A lone capitalised word may be a type ("Truck") or a brand ("Hongyan"), and its form does not tell which. Brands are
# an open set, names of bodies are ordinary words: these are the ones that a learned vocabulary knows as types.
# fmt: off
BODY_TYPES = frozenset((
    "ambulance", "bus", "cabriolet", "coach", "convertible", "coupe", "crossover", "estate", "hatchback", "limousine",
    "lorry", "microbus", "minibus", "minivan", "motorcycle", "mpv", "pickup", "roadster", "saloon", "sedan", "suv",
    "tractor", "trailer", "tricycle", "truck", "van", "wagon",
))
# fmt: on
_FILLERS = frozenset(("automobile", "car", "vehicle"))
_PREFIX = re.compile(r"(?:this is\s+)?(?:(?:an?|the)(?:\s+|$))?", re.IGNORECASE)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The words of vehicle phrases, each list sorted and without repetition; an entry may have several words."""

    colors: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("colors", "brands", "types"):
            object.__setattr__(self, part, tuple(sorted(set(getattr(self, part)))))

    @cached_property
    def _entries(self) -> dict[Words, tuple[str, str]]:
        """Words of an entry -> (part, entry). Where two parts share an entry, the colour wins, then the brand."""
        named = (("type", self.types), ("brand", self.brands), ("color", self.colors))
        return {tuple(entry.split()): (part, entry) for part, entries in named for entry in entries}

    @cached_property
    def _folded_entries(self) -> dict[Words, tuple[str, str]]:
        return {tuple(map(str.casefold, words)): found for words, found in self._entries.items()}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._entries), default=0)

    def find(self, words: Words) -> tuple[str, str, int] | None:
        """The longest entry that `words` begin with, as they are spelled or, failing that, in any case.

        Returns:
            The part (`color`, `brand` or `type`), the entry as the vocabulary spells it, and how many words it takes.
        """
        for entries, spelled in ((self._entries, words), (self._folded_entries, tuple(map(str.casefold, words)))):
            for length in range(min(self._longest, len(words)), 0, -1):
                if found := entries.get(spelled[:length]):
                    return *found, length
        return None


@dataclass(frozen=True)
class VehicleAttributes:
    """The parts of a vehicle phrase; `rest` are the words that no part took, joined by blanks."""

    color: str | None = None
    brand: str | None = None
    type: str | None = None
    rest: str = ""


def normalise_phrase(phrase: str) -> str:
    """The phrase without what says nothing: a leading "This is", the article, periods at the end, extra blanks.

    "This is a white  Audi." and "white Audi" are the same phrase after it. Case is kept, and so is the order of words.
    """
    words = " ".join(phrase.split()).rstrip(".。 ")
    return words[_PREFIX.match(words).end() :]  # type: ignore[union-attr]  # the pattern matches the empty string


def learn_vocabulary(phrases: Iterable[str], given: VehicleVocabulary | None = None) -> Vocabulary:
    """Learn colours, brands and types from vehicle phrases; equal sets of phrases give equal vocabularies.

    The rules, for a phrase without article and period:

    1. The leading words in small letters are the colour ("dark blue Audi"), up to the name of a body ("white van").
    2. A last word that names a body (`BODY_TYPES`, in any case) is the type, and what is between is the brand.
    3. But where two or more words come before the name of a body and are never seen without it, all of it is a brand:
       of "Balong Heavy Truck" the truck is part of the name, "Golden Dragon Bus" beside "Golden Dragon" has a type.
    4. Everything else that is capitalised is a brand, also when it stands alone ("Hongyan").

    Brands in small letters ("smart") break rule 1, and types that `BODY_TYPES` lacks rule 2: give a list then.

    Args:
        phrases: Attribute phrases of train rows, repetitions welcome.
        given: Lists that are known; they are kept, and the other parts are learned by them instead of by the rules
            (with `types` given, only these are types; with `colors` given, only these are colours).
    """
    given = given or VehicleVocabulary()
    known_types = None if given.types is None else {tuple(name.split()) for name in given.types}
    known_colors = None if given.colors is None else {tuple(name.split()) for name in given.colors}
    known_brands = {tuple(name.split()) for name in given.brands or ()}
    colors: set[Words] = set()
    tails: set[Words] = set()
    for phrase in set(phrases):
        words = tuple(word for word in _words(phrase) if word.casefold() not in _FILLERS)
        length = _color_length(words, known_colors)
        colors.add(words[:length])
        tails.add(words[length:])

    bodies = {tail: _body_length(tail, known_types) for tail in tails}
    seen_with: dict[Words, set[Words]] = defaultdict(set)  # what comes before a body, or stands without one -> bodies
    for tail, length in bodies.items():
        seen_with[tail[: len(tail) - length]].add(tail[len(tail) - length :])
        if length:
            seen_with[tail].add(())

    brands: set[Words] = set()
    types: set[Words] = set()
    for tail, length in bodies.items():
        head, body = tail[: len(tail) - length], tail[len(tail) - length :]
        is_name = len(head) > 1 and head not in known_brands and seen_with[head] == {body}
        if tail in known_brands or is_name:
            brands.add(tail)
        else:
            brands.add(head)
            types.add(body)
    return Vocabulary(
        tuple(_spelled(colors) if given.colors is None else given.colors),
        tuple(_spelled(brands) if given.brands is None else given.brands),
        tuple(_spelled(types) if given.types is None else given.types),
    )


def resolve_vocabulary(config: VehicleVocabulary, phrases: Iterable[str]) -> Vocabulary:
    """The vocabulary of a recipe: a list that is given is taken, one that is left out is learned from the phrases."""
    if config.colors is not None and config.brands is not None and config.types is not None:
        return Vocabulary(tuple(config.colors), tuple(config.brands), tuple(config.types))
    return learn_vocabulary(phrases, config)


def parse_vehicle(phrase: str, vocabulary: Vocabulary) -> VehicleAttributes:
    """Read a vehicle phrase, or a caption of that form, from left to right by the longest entry of the vocabulary.

    Words are compared as they are spelled first; where no entry begins so, in any case ("bmw suv"). The first colour,
    brand and type count; words of a second one, and words of no entry, go to `rest`.
    """
    words = tuple(_words(phrase))
    parts: dict[str, str] = {}
    rest: list[str] = []
    while words:
        part, entry, length = vocabulary.find(words) or ("", "", 1)
        if part and part not in parts:
            parts[part] = entry
        else:
            rest += words[:length]
        words = words[length:]
    return VehicleAttributes(**parts, rest=" ".join(rest))


def is_bit_vector(attributes: str) -> bool:
    """Whether a string is meant as a pedestrian vector: 21 fields between commas, the test of every track-2 system."""
    return attributes.count(",") == PEDESTRIAN_BITS - 1


def parse_pedestrian(bits: str) -> np.ndarray:
    """Read a pedestrian vector "0,1,0,...".

    Returns:
        bool [21]; bit 0 says female, the others are not documented by the challenge.

    Raises:
        ValueError: Naming the first field that is not 0 or 1, or the number of fields that is not 21.
    """
    fields = [field.strip() for field in bits.split(",")]
    if len(fields) != PEDESTRIAN_BITS:
        raise ValueError(
            f"a pedestrian vector is {PEDESTRIAN_BITS} values 0 or 1 with commas between, "
            f"not {len(fields)} as in {bits[:80]!r}"
        )
    for position, field in enumerate(fields):
        if field not in ("0", "1"):
            raise ValueError(f"bit {position} (counted from 0) of a pedestrian vector is {field!r}, neither 0 nor 1")
    return np.array([field == "1" for field in fields])


def pedestrian_matrix(attributes: pd.Series) -> np.ndarray:
    """Read many pedestrian vectors, each distinct string once.

    Args:
        attributes: N strings, none missing.

    Returns:
        bool [N, 21].

    Raises:
        ValueError: As `parse_pedestrian`, with the index of the first row concerned.
    """
    codes, distinct = pd.factorize(attributes)
    if (codes < 0).any():
        raise ValueError(f"row {attributes.index[int(np.argmax(codes < 0))]!r} has no pedestrian vector")
    matrix = np.empty((len(distinct), PEDESTRIAN_BITS), dtype=bool)
    for code, bits in enumerate(distinct):
        try:
            matrix[code] = parse_pedestrian(bits)
        except ValueError as error:
            row = attributes.index[int(np.argmax(codes == code))]
            raise ValueError(f"row {row!r}: {error}") from None
    return matrix[codes]


def _words(phrase: str) -> Iterator[str]:
    return (stripped for word in normalise_phrase(phrase).split() if (stripped := word.strip(",;")))


def _color_length(words: Words, known: set[Words] | None) -> int:
    """How many leading words are the colour."""
    if known is not None:
        return max((length for length in range(1, len(words) + 1) if words[:length] in known), default=0)
    for position, word in enumerate(words):
        if not word.islower() or word in BODY_TYPES:
            return position
    return len(words)


def _body_length(words: Words, known: set[Words] | None) -> int:
    """How many of the last words name a body."""
    if known is not None:
        return max((length for length in range(1, len(words) + 1) if words[-length:] in known), default=0)
    return int(bool(words) and words[-1].casefold() in BODY_TYPES)


def _spelled(names: set[Words]) -> Iterator[str]:
    return (" ".join(words) for words in names if words)
