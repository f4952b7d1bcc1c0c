"""Probabilities beside rankings: calibrates members and ensemble on the first places of slices, and applies that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from xmodal_kedro.retrieval.calibrate import Calibration, FirstPlaces, calibrate
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.judge import SliceScores, embedding_scores
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import Transposed
from xmodal_kedro.retrieval.slices import Slice

DIRECTIONS: tuple[Literal["t2i", "i2t"], ...] = ("t2i", "i2t")


def calibrate_slices(
    slices: Sequence[Slice], members: Sequence[Member], scores: SliceScores, precision: float, name: str = "ensemble"
) -> dict[str, Any]:
    """Calibrate the ensemble and each member by itself, for every direction and group that dev has truth of.

    Args:
        slices: Of dev and val.
        members: Whose cosines are the evidence; by itself a member has its own alone.
        scores: Of the ensemble, which choose its first places.
        precision: That the threshold is to reach.
        name: Of the ensemble.

    Returns:
        `origins` (member -> fingerprint of its weights) and `calibrated`: name -> direction -> group -> what
        `calibrate` says.
    """
    asked = {name: (scores, list(members))}
    asked |= {one.name: (embedding_scores(one.texts, one.images), [one]) for one in members}
    parts = {(part.split, part.group): part for part in slices if part.relevance.nnz}
    calibrated: dict[str, Any] = {}
    for who, (source, witnesses) in asked.items():
        groups = [group for split, group in parts if split == "dev"]
        found = {key: first_places(part, source, witnesses) for key, part in parts.items()}
        for direction in DIRECTIONS:
            for group in groups:
                dev, val = found["dev", group][direction], found.get(("val", group), {}).get(direction)
                entry = calibrate(dev, val, [one.name for one in witnesses], precision)
                calibrated.setdefault(who, {}).setdefault(direction, {})[group] = entry
    return {"origins": _origins(members), "calibrated": calibrated}


def first_places(part: Slice, scores: SliceScores, members: Sequence[Member]) -> dict[str, FirstPlaces]:
    """First places of a slice in both directions, of the queries that have a right item."""
    forward, backward = scores(part)
    sides = {"t2i": (forward, part.text_ids, part.image_ids, part.clusters, part.relevance)}
    turned = Transposed(forward) if backward is None else backward
    images = np.arange(len(part.image_ids))
    sides["i2t"] = (turned, part.image_ids, part.text_ids, images, part.relevance.T.tocsr())
    found = {}
    for direction, (source, queries, gallery, clusters, relevance) in sides.items():
        right = np.diff(relevance.indptr)
        # one more than anybody has right items: the best wrong one is among them, unless all are right
        rows = rank(source, None, int(right.max()) + 1).top_rows  # [N, k]
        every = np.arange(len(rows))
        known = np.repeat(every, right) * source.shape[1] + relevance.indices
        truth = np.isin(every[:, None] * source.shape[1] + rows, known)  # [N, k]
        wrong = truth.argmin(axis=1)
        asks = np.flatnonzero(right > 0)
        names, items = np.asarray(queries, dtype=object), np.asarray(gallery, dtype=object)
        first = evidence(members, direction, names[asks], items[rows[asks, 0]])
        strangers = evidence(members, direction, names[asks], items[rows[asks, wrong[asks]]])
        strangers[truth[asks].all(axis=1)] = np.nan
        found[direction] = FirstPlaces(first, truth[asks, 0], clusters[asks], strangers)
    return found


def evidence(
    members: Sequence[Member], direction: str, query_ids: Sequence[str] | np.ndarray, gallery_ids: np.ndarray
) -> np.ndarray:
    """Cosines [n, F] fp64 of pairs, a column per member."""
    texts, images = (query_ids, gallery_ids) if direction == "t2i" else (gallery_ids, query_ids)
    columns = [
        np.einsum("nd,nd->n", member.texts.take(texts), member.images.take(images), dtype=np.float64)
        for member in members
    ]
    return np.stack(columns, axis=1)


def with_probability(
    ranking: pd.DataFrame, calibration: Mapping[str, Any], members: Sequence[Member], name: str = "ensemble"
) -> tuple[pd.DataFrame, list[str]]:
    """The ranking with two more columns, filled on first places.

    Args:
        ranking: Of `rank_slices`.
        calibration: Of `calibrate_slices`.
        members: Of the ensemble.
        name: Of the ensemble.

    Returns:
        The ranking with `probability` (fp64) that the first place is right, and `match` (boolean): whether it is high
        enough; null on other places, where there is no threshold, and where nothing was calibrated. And a sentence for
        each reason why there is none.
    """
    probability = np.full(len(ranking), np.nan)
    match = pd.Series(pd.NA, index=ranking.index, dtype="boolean")
    reasons = []
    if calibration["origins"] != _origins(members):
        reasons.append("the calibration is of other members or other weights: run --pipelines=ensemble to calibrate")
        return ranking.assign(probability=probability, match=match), reasons
    first = ranking[ranking["rank"] == 1]
    for (direction, group), rows in first.groupby(["direction", "group"], sort=False):
        entry = calibration["calibrated"].get(name, {}).get(direction, {}).get(group)
        if entry is None:
            reasons.append(f"{direction} of group {group} was not calibrated: dev has no pair of it")
            continue
        found = Calibration(tuple(entry["weights"][member.name] for member in members), entry["bias"])
        pairs = evidence(
            members, str(direction), rows["query_id"].to_numpy(object), rows["gallery_id"].to_numpy(object)
        )
        said = found.probability(pairs)
        places = ranking.index.get_indexer(rows.index)
        probability[places] = said
        if entry["threshold"] is not None:
            match.iloc[places] = said >= entry["threshold"]["probability"]
    return ranking.assign(probability=probability, match=match), reasons


def _origins(members: Sequence[Member]) -> dict[str, str]:
    return {member.name: member.images.meta["fingerprints"]["weights"] for member in members}
