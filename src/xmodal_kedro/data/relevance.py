"""Which images are right for a text: sparse many-to-many truth by id, equal text, equal or including attributes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from xmodal_kedro.config.data import RelevanceConfig, RelevanceMode
from xmodal_kedro.data.attributes import PEDESTRIAN_BITS, normalise_phrase, pedestrian_matrix

_BLOCK = 1 << 20  # comparisons of vectors at once: a few MiB


def text_to_image_relevance(
    pairs: pd.DataFrame, text_ids: Sequence[str], image_ids: Sequence[str], mode: RelevanceMode
) -> sparse.csr_array:
    """Truth between texts and images; `.T.tocsr()` is that between images and texts.

    A text and an image are right for each other when a row of the pair table holds both, and also, by mode:

    - `id`: in no other case.
    - `text`: when the image has a caption equal to the text.
    - `attribute_text`: when the image has a row whose phrase equals that of the text, after `normalise_phrase`.
    - `attribute_inclusion`: when the image has a row whose 21 bits include those of the text: bit 0 is equal, and every
      bit that the text sets is set for the image. The reverse need not hold.

    A row without attributes says nothing by them, so it counts by id alone; an id without rows has nothing that is
    right. A text or image with several rows has what any of them gives it.

    Args:
        pairs: Rows of one split and group of a pair table (or of captions made from it).
        text_ids: T distinct text ids, in the order of the rows of the result.
        image_ids: I distinct image ids, in the order of its columns.
        mode: How relevance is found.

    Returns:
        bool [T, I], indices sorted, only True stored.

    Raises:
        ValueError: An id is given twice or missing, or a bit vector is none.
    """
    text_of_row = _positions(text_ids, pairs["text_id"], "text_ids")
    image_of_row = _positions(image_ids, pairs["image_id"], "image_ids")
    relevance = _incidence(text_of_row, image_of_row, (len(text_ids), len(image_ids)))
    if mode != "id":
        key_of_row, keys = _keys(pairs, mode)
        texts = _incidence(text_of_row, key_of_row, (len(text_ids), len(keys)))
        images = _incidence(key_of_row, image_of_row, (len(keys), len(image_ids)))
        if mode == "attribute_inclusion":
            images = _inclusion(keys) @ images
        relevance = relevance + texts @ images  # of bool: "or" of "and"s, so that no count can overflow
    relevance.sort_indices()
    return relevance


def relevance_keys(pairs: pd.DataFrame, relevance: RelevanceConfig) -> pd.Series:
    """A key per row; rows with equal keys are positives of each other in a training batch.

    The key is, by the mode of the row's group: the image id (`id`), the text (`text`), group and phrase
    (`attribute_text`), group and bit vector (`attribute_inclusion`: equal ones only, as inclusion has a direction). A
    row without the text or the attributes that its mode asks for has its image's key, one without an image its own.

    Args:
        pairs: Rows of a pair table (or of captions made from it), any groups.
        relevance: The modes.

    Returns:
        int64 [N] with the index of `pairs`. Keys of different calls have nothing to do with each other.
    """
    codes, images = pd.factorize(pairs["image_id"])
    keys = np.where(codes < 0, len(images) + np.arange(len(pairs)), codes).astype(np.int64)
    free = len(images) + len(pairs)
    modes = {group: relevance.groups.get(group, relevance.default) for group in pairs["group"].unique()}
    scopes: list[tuple[RelevanceMode, list[str]]] = [("text", [group for group in modes if modes[group] == "text"])]
    scopes += [(mode, [group]) for group, mode in modes.items() if mode not in ("id", "text")]
    for mode, groups in scopes:
        rows = np.flatnonzero(pairs["group"].isin(groups))
        codes, values = _keys(pairs.iloc[rows], mode)
        keys[rows[codes >= 0]] = free + codes[codes >= 0]
        free += len(values)
    return pd.Series(keys, index=pairs.index, name="relevance_key")


def _keys(pairs: pd.DataFrame, mode: RelevanceMode) -> tuple[np.ndarray, np.ndarray]:
    """What rows are compared by: int [N] positions in the distinct values (-1 where a row has none), and these."""
    if mode == "text":
        codes, texts = pd.factorize(pairs["text"])
        return codes, np.asarray(texts, dtype=object)
    attributes = pairs["attributes"].set_axis(pairs["source"].astype(str) + ":" + pairs["row"].astype(str))
    present = attributes.notna().to_numpy()
    if mode == "attribute_text":
        written, phrases = pd.factorize(attributes[present])
        meant, values = pd.factorize(np.array([normalise_phrase(phrase) for phrase in phrases], dtype=object))
        found = meant[written]
    else:
        found, values = pd.factorize(_packed(pedestrian_matrix(attributes[present])))
    codes = np.full(len(pairs), -1)
    codes[present] = found
    return codes, values


def _packed(bits: np.ndarray) -> np.ndarray:
    """bool [N, 21] as int64 [N]: bit 0 is there a second time, negated, so that a subset has it equal too."""
    doubled = np.column_stack([bits, ~bits[:, :1]])
    return doubled @ (1 << np.arange(PEDESTRIAN_BITS + 1, dtype=np.int64))


def _inclusion(vectors: np.ndarray) -> sparse.csr_array:
    """bool [K, K] from packed [K]: the vector of the column includes that of the row."""
    step = max(1, _BLOCK // max(1, len(vectors)))
    blocks = [
        sparse.csr_array((vectors[start : start + step, None] & ~vectors) == 0)
        for start in range(0, len(vectors), step)
    ]
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((0, 0), dtype=bool)


def _incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    both = (rows >= 0) & (columns >= 0)
    return sparse.csr_array((np.ones(both.sum(), dtype=bool), (rows[both], columns[both])), shape=shape)


def _positions(ids: Sequence[str], column: pd.Series, name: str) -> np.ndarray:
    """Position of each row's id in `ids`, -1 where it is missing or not asked for."""
    index = pd.Index(np.asarray(ids, dtype=object))
    wrong = index.duplicated() | index.isna()
    if wrong.any():
        raise ValueError(f"{name} must be distinct and present, but {index[wrong][0]!r} is missing or comes twice")
    return index.get_indexer(pd.Index(column.astype(object)))
