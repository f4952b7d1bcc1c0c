"""Prompt augmentation: captions made from pairs by the templates of their group, every other row left bit-identical.

The published forms are configurations of it (1st and 2nd place of CVPR 2023 track 2): sentences about brand, model and
colour behind a vehicle's text, and one extra row per sentence of a pedestrian's.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import GroupPrompts, PromptsConfig, template_parts
from xmodal_kedro.data.attributes import Vocabulary, parse_vehicle

# A stop that ends a sentence: a Chinese one anywhere, a western one before a blank or the end ("3.5" has none), and one
# between a word in small letters and a capital, where the blank was forgotten ("on foot.He is").
_STOP = re.compile(r"[。！？]+|[.!?]+(?=\s|$)|(?<=[a-z]{2})[.!?]+(?=[A-Z])")
# A period that belongs to its word: titles, Latin, numbers, and single letters ("U.S. Army", "J. Smith").
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|approx|ca|e\.g|i\.e|cf|(?:[A-Za-z]\.)*[A-Za-z])$")


def augment(pairs: pd.DataFrame, prompts: PromptsConfig, vocabulary: Vocabulary) -> pd.DataFrame:
    """Make the captions of a data set from its pairs.

    Of each group in `prompts.groups`, rows with a text are changed so:

    - `append`: the filled templates follow the text, joined by `separator`; in train rows, and with `prompts.queries`
      in those of dev, val and test too.
    - `rows`: each template adds a row for the same image; in train rows with an image only, whatever `queries` says.
    - `sentence_rows`: each sentence of a text that has several adds a row, likewise.

    `{text}` is the text as it came, before anything is appended; `{color} {brand} {type}` are parts of the attribute
    phrase in rows of `prompts.vehicle_group`. A template with a part that the row lacks is left out for that row.

    Args:
        pairs: A pair table.
        prompts: The templates.
        vocabulary: Reads the attribute phrases.

    Returns:
        The pair table's columns and `origin`, the text_id of the row that a caption was made from. Extra rows follow
        theirs, with text_id "<text_id>/<k>": k counts from 1 over `rows` as configured, then over the sentences.
        Attributes are those of the pair, so relevance by attributes does not change.
    """
    captions = pairs.assign(origin=pairs["text_id"]).reset_index(drop=True)
    texts = captions["text"].to_numpy(dtype=object, copy=True)
    in_train = (captions["split"] == "train").to_numpy()
    has_text = captions["text"].notna().to_numpy()
    has_image = captions["image_id"].notna().to_numpy()
    extras: list[tuple[int, int, str]] = []  # position of the row, k, text
    for group, templates in prompts.groups.items():
        of_group = (captions["group"] == group).to_numpy() & has_text
        parts = _parts_of_rows(captions, of_group & (group == prompts.vehicle_group), vocabulary)
        for position in np.flatnonzero(of_group & has_image & in_train).tolist():
            made = _extra_texts(texts[position], parts[position], templates)
            extras += [(position, k, text) for k, text in made]
        for position in np.flatnonzero(of_group & (in_train | prompts.queries)).tolist():
            filled = [_fill(template, parts[position], texts[position]) for template in templates.append]
            kept = [sentence for sentence in filled if sentence is not None]
            texts[position] = templates.separator.join([texts[position], *kept])
    captions["text"] = pd.Series(texts, dtype=object).astype(captions["text"].dtype)
    return _with_extra_rows(captions, extras)


def split_sentences(text: str) -> list[str]:
    """The sentences of an English or Chinese text, each with its stop.

    Decimals and common abbreviations ("3.5", "e.g.", "Mr.", "U.S.") do not end a sentence. Words behind the last stop
    are a sentence too and get the stop of the one before, or a period.
    """
    sentences: list[str] = []
    start = 0
    stop = "."
    for match in _STOP.finditer(text):
        if match[0] == "." and _ABBREVIATION.search(text[start : match.start()]) and match.end() < len(text):
            continue
        stop = match[0][-1]
        sentences.append(text[start : match.start()].strip() + stop)
        start = match.end()
    if ending := text[start:].strip():
        sentences.append(ending + stop)
    return [sentence for sentence in sentences if any(map(str.isalnum, sentence))]


def _parts_of_rows(captions: pd.DataFrame, rows: np.ndarray, vocabulary: Vocabulary) -> list[dict[str, str]]:
    """The parts that each row has, parsed once per distinct phrase; none outside `rows`."""
    codes, phrases = pd.factorize(captions["attributes"].where(rows))
    parsed = [vars(parse_vehicle(phrase, vocabulary)) for phrase in phrases]
    parts = [{part: words for part, words in found.items() if words is not None} for found in parsed]
    parts.append({})  # code -1: no attributes
    return [parts[code] for code in codes]


def _fill(template: str, parts: dict[str, str], text: str) -> str | None:
    if _needed(template) <= parts.keys():
        return template.format(**parts, text=text)
    return None


@lru_cache
def _needed(template: str) -> set[str]:
    return template_parts(template) - {"text"}


def _extra_texts(text: str, parts: dict[str, str], templates: GroupPrompts) -> list[tuple[int, str]]:
    filled = [_fill(template, parts, text) for template in templates.rows]
    sentences = split_sentences(text) if templates.sentence_rows else []
    made = [*filled, *(sentences if len(sentences) > 1 else [])]
    return [(k, extra) for k, extra in enumerate(made, start=1) if extra is not None]


def _with_extra_rows(captions: pd.DataFrame, extras: list[tuple[int, int, str]]) -> pd.DataFrame:
    if not extras:
        return captions
    positions, ks, texts = zip(*extras, strict=True)
    rows = captions.take(positions)
    rows["text"] = list(texts)
    rows["text_id"] = rows["origin"] + [f"/{k}" for k in ks]
    order = np.lexsort(([0] * len(captions) + list(ks), [*range(len(captions)), *positions]))
    return pd.concat([captions, rows], ignore_index=True).take(order).reset_index(drop=True)
