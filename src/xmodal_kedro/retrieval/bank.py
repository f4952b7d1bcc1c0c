"""Texts and images of train that stand for queries, so that a normalisation need not look at those that are judged."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xmodal_kedro.retrieval.embeddings import Embeddings, check_made_by

SEED = 0  # one for all members: those of a mixture ask the same bank


def draw_bank(captions: pd.DataFrame, side: str, size: int, seed: int = SEED) -> pd.DataFrame:
    """Rows of train whose texts or images stand for queries.

    Args:
        captions: The caption table.
        side: `text` or `image`.
        size: Rows of each group, at most.
        seed: Of the draw.

    Returns:
        Rows of the table, group by group: distinct by id, texts by what they read as well, and none of them in another
        split.
    """
    column = f"{side}_id"
    elsewhere = captions.loc[captions["split"] != "train", column].dropna()
    rows = captions[(captions["split"] == "train") & captions[column].notna() & ~captions[column].isin(elsewhere)]
    rows = rows.drop_duplicates(column)
    if side == "text":
        rows = rows.drop_duplicates(["group", "text"])
    drawn = [rows.iloc[:0]]
    for _, own in rows.groupby("group", sort=False):
        drawn.append(own.sample(min(size, len(own)), random_state=seed))
    return pd.concat(drawn)


def with_bank(ranked: Embeddings, ids: list[str], groups: list[str], matrix: np.ndarray, size: int) -> Embeddings:
    """Embeddings of what is ranked, followed by the bank [B, D] that was drawn with this `size`; its ids say so."""
    return Embeddings(
        np.concatenate([ranked.ids, np.array([f"bank:{name}" for name in ids], dtype=object)]),
        np.concatenate([ranked.matrix, matrix]),
        ranked.meta | {"bank_size": size},
        np.array([None] * len(ranked) + groups, dtype=object),
    )


def with_bank_of(ranked: Embeddings, saved: Embeddings) -> Embeddings:
    """Embeddings of new data, followed by the bank that the same weights embedded before.

    Raises:
        OtherOriginError: Other weights did, or another transform.
        ValueError: They hold no bank.
    """
    check_made_by(saved, **{what: ranked.meta["fingerprints"][what] for what in ("weights", "transform")})
    if saved.bank is None:
        raise ValueError(
            f"{saved} hold no bank of train, which ensemble.fusion asks for: run --pipelines=evaluate again"
        )
    rows = np.flatnonzero([group is not None for group in saved.bank])
    ids = [name.removeprefix("bank:") for name in saved.ids[rows]]
    return with_bank(ranked, ids, saved.bank[rows].tolist(), np.asarray(saved.matrix[rows]), saved.meta["bank_size"])
