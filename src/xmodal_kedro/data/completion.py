"""Attributes that a vehicle's phrase lacks, completed by the likeliest that an un-tuned model sees in the image.

Zero-shot attribute completion of A3R (arXiv 2306.06691): the vocabulary's entries for the missing parts, put into a
template with the parts that are known, are compared with the image; the best cosine wins. Models do not appear here:
images and texts are encoded by functions that the caller brings. What was completed once is kept in a store.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import CompletionConfig, PromptsConfig
from xmodal_kedro.config.member import BackboneConfig
from xmodal_kedro.data.attributes import PARTS, Vocabulary
from xmodal_kedro.data.manifest import BrokenArtifactError, fingerprint, read_manifest, seal
from xmodal_kedro.data.prompts import fill_skipping, parts_of
from xmodal_kedro.data.tables import table_fingerprint

KIND = "completion"
COLUMNS = ["image_id", "text_id", *PARTS, "completed", "score", "margin"]
TIE = 1e-6  # cosines of fp32 features that differ by less are equal but for rounding
BLOCK = 1 << 22  # scores at once: 16 MiB

Encode = Callable[[list[str]], np.ndarray]
"""Image ids or texts -> [N, D] fp32, rows of length 1."""


def incomplete_rows(
    pairs: pd.DataFrame,
    image_ids: pd.Index,
    prompts: PromptsConfig,
    vocabulary: Vocabulary,
    completion: CompletionConfig,
) -> pd.DataFrame:
    """The rows that can be completed.

    These are train pairs of the vehicle group whose phrase lacks one of the parts to complete. A part for which the
    vocabulary has no entry is not completed, and neither are pairs without a phrase: their text may say anything.

    Args:
        pairs: A pair table.
        image_ids: Images that can be read; rows of others are left out.
        prompts: Names the vehicle group.
        vocabulary: Reads the phrases.
        completion: Which parts are completed.

    Returns:
        Columns `image_id, text_id, color, brand, type` (null where it lacks one) and `completed`, the names of the
        parts to complete joined by blanks; a row per pair, in their order.
    """
    train = (pairs["split"] == "train") & (pairs["group"] == prompts.vehicle_group)
    rows = pairs[train & pairs["text_id"].notna() & pairs["attributes"].notna() & pairs["image_id"].isin(image_ids)]
    codes, phrases = pd.factorize(rows["attributes"])
    known = [parts_of(phrase, vocabulary) for phrase in phrases]
    offered = [part for part in PARTS if part in completion.parts and _entries(vocabulary, part)]
    lacking = [" ".join(part for part in offered if part not in parts) for parts in known]
    columns: dict[str, list[str | None]] = {part: [parts.get(part) for parts in known] for part in PARTS}
    table = pd.DataFrame(columns | {"completed": lacking}, dtype="str").take(codes)
    table.insert(0, "text_id", rows["text_id"].to_numpy())
    table.insert(0, "image_id", rows["image_id"].to_numpy())
    return table[table["completed"] != ""].drop_duplicates(["image_id", "text_id"]).reset_index(drop=True)


def complete(
    rows: pd.DataFrame, vocabulary: Vocabulary, template: str, encode_images: Encode, encode_texts: Encode
) -> pd.DataFrame:
    """Fill the missing parts of rows by the candidate whose text is nearest to the image.

    Candidates of a row are all combinations of the entries of its missing parts. Every distinct image and candidate is
    encoded once; scores are computed in blocks, so that memory grows with images and candidates, not their product. Of
    candidates that score the same the first in the order of the vocabulary wins, the last missing part running fastest.

    Args:
        rows: From `incomplete_rows`.
        vocabulary: Of the missing parts.
        template: Of a candidate text; parts that stay missing are skipped.
        encode_images: Encodes image ids.
        encode_texts: Encodes texts.

    Returns:
        `COLUMNS`: ids, all parts (null where one stays missing), the names of those that were completed, the cosine of
        the chosen candidate and its lead over the next one (null where there is no other).
    """
    codes = rows.groupby([*PARTS, "completed"], dropna=False, sort=False).ngroup().to_numpy()
    groups = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
    filled = [_combinations(rows.iloc[places[0]], vocabulary) for places in groups]
    texts = [[fill_skipping(template, parts) or "" for parts in candidates] for candidates in filled]
    text_codes = pd.Index(dict.fromkeys(text for candidates in texts for text in candidates))
    image_codes, images = pd.factorize(rows["image_id"])
    table = rows.assign(score=np.float32(), margin=np.float32())[COLUMNS]
    if rows.empty:
        return table
    image_features, text_features = encode_images(list(images)), encode_texts(list(text_codes))
    chosen: list[dict[str, str]] = [{}] * len(rows)
    score, margin = np.empty((2, len(rows)), np.float32)
    for places, candidates, names in zip(groups, filled, texts, strict=True):
        features = text_features[text_codes.get_indexer(pd.Index(names))]
        step = max(1, BLOCK // len(candidates))
        for start in range(0, len(places), step):
            block = places[start : start + step]
            best, score[block], margin[block] = _best(image_features[image_codes[block]] @ features.T)
            for place, candidate in zip(block, best, strict=True):
                chosen[place] = candidates[candidate]
    for part in PARTS:
        table[part] = pd.array([parts.get(part) for parts in chosen], dtype="str")
    return table.assign(score=score, margin=margin)


def complete_or_reuse(
    rows: pd.DataFrame, folder: Path, key: Callable[[], str], make: Callable[[], pd.DataFrame]
) -> tuple[pd.DataFrame, bool]:
    """Read what was completed before under the same key, or complete it and keep it.

    Args:
        rows: From `incomplete_rows`.
        folder: The store; holds one directory per key.
        key: Gives the key, see `completion_key`. It is asked again before saving: a model that is fetched or converted
            when it is first loaded has another key afterwards, the one that the next run will ask for.
        make: Completes the rows.

    Returns:
        The completed table, and whether it was there.
    """
    if rows.empty:
        return make(), False
    try:
        directory = folder / key()[:16]
        read_manifest(directory, KIND, hashes=True)
        return pd.read_parquet(directory / "completed.parquet"), True
    except BrokenArtifactError:
        pass  # not completed yet, or damaged since
    table = make()
    directory = folder / key()[:16]
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        table.to_parquet(unfinished / "completed.parquet", index=False)
        seal(unfinished, KIND, completion=key())
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return table, False


def completion_key(
    rows: pd.DataFrame,
    vocabulary: Vocabulary,
    completion: CompletionConfig,
    backbone: BackboneConfig,
    seed: int,
    precision: str,
    images: str,
) -> str:
    """Fingerprint of all that decides what is completed.

    Args:
        rows: From `incomplete_rows`.
        vocabulary: Of the missing parts.
        completion: The options; where the store lies does not matter.
        backbone: From `untuned`; weights in a directory count by name, size and time of its files, those of a hub by
            their id.
        seed: Of random weights.
        precision: That images and texts are encoded in.
        images: Fingerprint of the image store.
    """
    return fingerprint(
        {
            "rows": table_fingerprint(rows),
            "vocabulary": {part: _entries(vocabulary, part) for part in PARTS},
            "options": completion.model_dump(exclude={"store", "member"}),
            "backbone": backbone.model_dump(),
            "weights": _weights_state(backbone.weights),
            "seed": seed if backbone.weights is None else None,
            "precision": precision,
            "images": images,
        }
    )


def untuned(backbone: BackboneConfig) -> BackboneConfig:
    """The backbone without what only training needs; its features are the same."""
    return BackboneConfig(
        name=backbone.name, weights=backbone.weights, architecture=backbone.architecture, context=backbone.context
    )


def _entries(vocabulary: Vocabulary, part: str) -> Sequence[str]:
    return {"color": vocabulary.colors, "brand": vocabulary.brands, "type": vocabulary.types}[part]


def _combinations(row: pd.Series, vocabulary: Vocabulary) -> list[dict[str, str]]:
    """The parts of each candidate of a row."""
    known = {part: row[part] for part in PARTS if isinstance(row[part], str)}
    missing = row["completed"].split()
    return [
        known | dict(zip(missing, entries, strict=True))
        for entries in product(*(_entries(vocabulary, part) for part in missing))
    ]


def _best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of scores [B, C]: the first of the best candidates, its score, and its lead over the next one."""
    top = scores.max(1, keepdims=True)
    best = (scores >= top - TIE).argmax(1)
    rows = np.arange(len(scores))
    score = scores[rows, best]
    scores[rows, best] = -np.inf
    following = scores.max(1)
    margin = np.where(np.isinf(following), np.nan, np.maximum(score - following, 0))
    return best, score, margin


def _weights_state(weights: str | None) -> Any:
    if weights is None:
        return None
    place = Path(weights).expanduser()
    files = sorted(place.rglob("*")) if place.is_dir() else [place] if place.is_file() else []
    return [
        (file.relative_to(place).as_posix(), (state := file.stat()).st_size, state.st_mtime_ns)
        for file in files
        if file.is_file()
    ]
