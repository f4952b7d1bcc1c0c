"""Prompt augmentation: captions made from pairs by the templates of their group, every other row left bit-identical.

The published forms are configurations of it (1st and 6th place of CVPR 2023 track 2): sentences about brand, model and
colour behind a vehicle's text, one extra row per sentence of a pedestrian's, and queries in the form of bare phrases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import GroupPrompts, PromptsConfig, QueryForm, template_parts
from xmodal_kedro.data.attributes import PARTS, Vocabulary, parse_vehicle, resolve_vocabulary

# A stop that ends a sentence: a Chinese one anywhere, a western one before a blank or the end ("3.5" has none), and one
# between a word in small letters and a capital, where the blank was forgotten ("on foot.He is").
_STOP = re.compile(r"[。！？]+|[.!?]+(?=\s|$)|(?<=[a-z]{2})[.!?]+(?=[A-Z])")
# A period that belongs to its word: titles, Latin, numbers, and single letters ("U.S. Army", "J. Smith").
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|approx|ca|e\.g|i\.e|cf|(?:[A-Za-z]\.)*[A-Za-z])$")

_SKIPPED = "\0"  # stands for a part that is not there, until the blanks around it are known
_GAP = re.compile(r"\s*\0(?=\W|$)")


def augment(
    pairs: pd.DataFrame, prompts: PromptsConfig, vocabulary: Vocabulary, completed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Make the captions of a data set from its pairs.

    Of each group in `prompts.groups`, rows with a text are changed so:

    - `replace`: a train text becomes the template, in which parts that the row lacks are skipped with the blanks before
      them; a row that lacks every part which the template names keeps its text.
    - `query`: a text of dev, val and test loses the longest of the prefixes that it begins with, then the characters at
      its end, and gets the suffix; one of which nothing would be left stays as it came.
    - `append`: the filled templates follow, joined by `separator`; in train rows, and with `prompts.queries` in those
      of dev, val and test too.
    - `rows`: each template adds a row for the same image; in train rows with an image only, whatever `queries` says.
    - `sentence_rows`: each sentence of a text that has several adds a row, likewise.

    `{text}` is the text as it came, and sentences are those of it; `{color} {brand} {type}` are parts of the attribute
    phrase in rows of `prompts.vehicle_group`. A template of `append` or `rows` with a part that the row lacks is left
    out for that row; of a list in `rows` the others stay, unless all that name parts are left out.

    Args:
        pairs: A pair table.
        prompts: The templates.
        vocabulary: Reads the attribute phrases.
        completed: Columns `image_id, text_id, color, brand, type`: the parts of rows whose phrase lacks some; see
            `completion.complete`.

    Returns:
        The pair table's columns; `origin`, the text_id of the row that a caption was made from; and `pair_text`, the
        text of that row as it came, by which equal texts are found whatever the prompts. Extra rows follow theirs, with
        text_id "<text_id>/<k>": k counts from 1 over `rows` as configured, then over the sentences. Attributes are
        those of the pair, so relevance by attributes does not change.
    """
    captions = pairs.assign(origin=pairs["text_id"], pair_text=pairs["text"]).reset_index(drop=True)
    came = captions["text"].to_numpy(dtype=object)
    texts = came.copy()
    in_train = (captions["split"] == "train").to_numpy()
    has_text = captions["text"].notna().to_numpy()
    has_image = captions["image_id"].notna().to_numpy()
    extras: list[tuple[int, int, str]] = []  # position of the row, k, text
    for group, templates in prompts.groups.items():
        of_group = (captions["group"] == group).to_numpy() & has_text
        parts = _parts_of_rows(captions, of_group & (group == prompts.vehicle_group), vocabulary, completed)
        for position in np.flatnonzero(of_group & has_image & in_train).tolist():
            made = _extra_texts(came[position], parts[position], templates)
            extras += [(position, k, text) for k, text in made]
        if templates.replace is not None:
            for position in np.flatnonzero(of_group & in_train).tolist():
                filled = fill_skipping(templates.replace, parts[position], came[position])
                texts[position] = came[position] if filled is None else filled
        if templates.query != QueryForm():
            for position in np.flatnonzero(of_group & ~in_train).tolist():
                texts[position] = _as_query(came[position], templates.query)
        for position in np.flatnonzero(of_group & (in_train | prompts.queries)).tolist():
            sentences = [_fill(template, parts[position], came[position]) for template in templates.append]
            kept = [sentence for sentence in sentences if sentence is not None]
            texts[position] = templates.separator.join([texts[position], *kept])
    captions["text"] = pd.Series(texts, dtype=object).astype(captions["text"].dtype)
    return _with_extra_rows(captions, extras)


def member_captions(
    pairs: pd.DataFrame,
    captions: pd.DataFrame,
    prompts: PromptsConfig,
    of_member: Mapping[str, GroupPrompts],
    vocabulary: Vocabulary,
    completed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The captions of one member: train rows by its own prompts, everything else as for all members.

    Args:
        pairs: The pair table that `captions` were made from.
        captions: The captions that all members share.
        prompts: The prompts that these were made by; they stay for groups that the member does not name.
        of_member: The member's prompts by group.
        vocabulary: As for `augment`.
        completed: As for `augment`.

    Returns:
        A caption table, the train rows first.
    """
    own = prompts.model_copy(update={"groups": {**prompts.groups, **of_member}})
    train = augment(pairs[pairs["split"] == "train"], own, vocabulary, completed)
    return pd.concat([train, captions[captions["split"] != "train"]], ignore_index=True)


def train_vocabulary(pairs: pd.DataFrame, prompts: PromptsConfig) -> Vocabulary:
    """The vocabulary of vehicle phrases: as the recipe lists it, or learned from the train rows of a pair table."""
    rows = pairs[(pairs["split"] == "train") & (pairs["group"] == prompts.vehicle_group)]
    return resolve_vocabulary(prompts.vocabulary, rows["attributes"].dropna())


def fill_skipping(template: str, parts: Mapping[str, str], text: str = "") -> str | None:
    """Fill a template and skip the parts that are not there; none where it names parts and not one of them is.

    With each part that is skipped go the blanks before it, and blanks at the ends: of "This is a {color} {brand}."
    without a brand stays "This is a white."
    """
    needed = _needed(template)
    if needed and not needed & parts.keys():
        return None
    if needed <= parts.keys():
        return template.format(**parts, text=text)
    filled = template.format(**{part: parts.get(part, _SKIPPED) for part in needed}, text=text)
    return _GAP.sub("", filled).replace(_SKIPPED, "").strip()


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


def _parts_of_rows(
    captions: pd.DataFrame, rows: np.ndarray, vocabulary: Vocabulary, completed: pd.DataFrame | None
) -> list[dict[str, str]]:
    """The parts that each row has, parsed once per distinct phrase; none outside `rows`."""
    codes, phrases = pd.factorize(captions["attributes"].where(rows))
    parts = [parts_of(phrase, vocabulary) for phrase in phrases]
    parts.append({})  # code -1: no attributes
    found = [parts[code] for code in codes]
    if completed is not None and rows.any():
        keys = pd.MultiIndex.from_frame(completed[["image_id", "text_id"]])
        places = keys.get_indexer(pd.MultiIndex.from_frame(captions[["image_id", "text_id"]]))
        known = [_present(dict(zip(PARTS, row, strict=True))) for row in completed[list(PARTS)].to_numpy(dtype=object)]
        for position in np.flatnonzero(rows & (places >= 0)).tolist():
            found[position] = known[places[position]]
    return found


def parts_of(phrase: str, vocabulary: Vocabulary) -> dict[str, str]:
    """The parts (`PARTS`) that an attribute phrase has."""
    return _present(vars(parse_vehicle(phrase, vocabulary)))


def _present(parts: Mapping[str, Any]) -> dict[str, str]:
    return {part: parts[part] for part in PARTS if isinstance(parts[part], str)}


def _as_query(text: str, form: QueryForm) -> str:
    prefix = max((p for p in form.strip_prefixes if text.startswith(p)), key=len, default="")
    kept = text.removeprefix(prefix).rstrip().rstrip(form.strip_end).strip()
    return (kept or text) + form.suffix


def _fill(template: str, parts: Mapping[str, str], text: str) -> str | None:
    if _needed(template) <= parts.keys():
        return template.format(**parts, text=text)
    return None


@lru_cache
def _needed(template: str) -> frozenset[str]:
    return frozenset(template_parts(template) - {"text"})


def _fill_row(row: str | list[str], parts: Mapping[str, str], text: str, separator: str) -> str | None:
    if isinstance(row, str):
        return _fill(row, parts, text)
    filled = [_fill(template, parts, text) for template in row]
    of_parts = [sentence for template, sentence in zip(row, filled, strict=True) if _needed(template)]
    if of_parts and not any(of_parts):
        return None
    return separator.join(sentence for sentence in filled if sentence is not None)


def _extra_texts(text: str, parts: Mapping[str, str], templates: GroupPrompts) -> list[tuple[int, str]]:
    filled = [_fill_row(row, parts, text, templates.separator) for row in templates.rows]
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
