"""The members of an ensemble as one: weights chosen on dev, scores mixed per slice, rankings and matchings of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.embeddings import Embeddings, check_made_by
from xmodal_kedro.retrieval.fuse import DevPart, search_weights
from xmodal_kedro.retrieval.judge import SliceScores
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank, ranking_table
from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource, Transposed, WeightedScores
from xmodal_kedro.retrieval.slices import Slice


@dataclass(frozen=True)
class Member:
    """Both sides of one member's embeddings."""

    name: str
    texts: Embeddings
    images: Embeddings

    def scores(self, part: Slice, fusion: FusionConfig, direction: str) -> ScoreSource:
        """Normalised scores of a slice: texts over images for `t2i`, images over texts for `i2t`."""
        source: ScoreSource = EmbeddingScores(self.texts.take(part.text_ids), self.images.take(part.image_ids))
        source = source if direction == "t2i" else Transposed(source)
        return normalised(
            source, fusion.normalisations.get(self.name, fusion.normalisation), Setting(fusion.temperature)
        )


def pair_members(embeddings: Sequence[Embeddings], captions: str) -> list[Member]:
    """Put the two sides of each member together.

    Args:
        embeddings: Image and text embeddings in any order.
        captions: Fingerprint of the captions that they must have been made from.

    Raises:
        OtherOriginError: They were made from other captions, or the two sides by different weights.
    """
    sides: dict[str, dict[str, Embeddings]] = {}
    for one in embeddings:
        check_made_by(one, captions=captions)
        sides.setdefault(one.meta["member"], {})[one.meta["side"]] = one
    members = [Member(name, both["text"], both["image"]) for name, both in sides.items()]
    for member in members:
        check_made_by(member.texts, weights=member.images.meta["fingerprints"]["weights"])
    return members


def choose_weights(members: Sequence[Member], dev: Sequence[Slice], fusion: FusionConfig) -> dict[str, Any]:
    """Weights as the config gives them, or searched on dev, by the fused scores: re-ranking comes after.

    Returns:
        `weights` (they sum to 1), `chosen` (searched, equal or given), `metric`, `direction`, and of a search `split`
        (always dev), `value`, and `alone`: the same metric of each member by itself.

    Raises:
        ValueError: Weights are given for members that do not exist, or none is above zero.
    """
    names = [member.name for member in members]
    choice = {"metric": fusion.metric, "direction": fusion.direction, "members": _origins(members)}
    if fusion.weights == "equal":
        return choice | {"chosen": "equal", "weights": {name: 1 / len(names) for name in names}}
    if isinstance(fusion.weights, dict):
        unknown = set(fusion.weights) - set(names)
        total = sum(fusion.weights.values())
        if unknown or total <= 0 or min(fusion.weights.values()) < 0:
            raise ValueError(
                f"ensemble.fusion.weights is {fusion.weights}: it needs weights of {', '.join(names)}, none negative "
                "and one above zero; members that it leaves out get 0"
            )
        return choice | {"chosen": "given", "weights": {n: fusion.weights.get(n, 0.0) / total for n in names}}
    parts = {
        part.group: DevPart(
            {member.name: member.scores(part, fusion, fusion.direction) for member in members},
            part.relevance if fusion.direction == "t2i" else part.relevance.T,
        )
        for part in dev
        if part.relevance.nnz
    }
    if not parts:
        raise ValueError(
            "there is no dev pair to search weights on: set ensemble.fusion.weights to equal, or give them"
        )
    found = search_weights(parts, fusion.metric, step=fusion.step)
    alone = found.trace.set_index(pd.Index([_only(row, names) for _, row in found.trace.iterrows()]))["value"]
    return choice | {
        "chosen": "searched",
        "split": "dev",
        "weights": found.weights,
        "value": found.value,
        "alone": {name: float(alone.loc[[name]].iloc[0]) for name in names},
        "trials": len(found.trace),
    }


def check_fusion(fusion: dict[str, Any], members: Sequence[Member]) -> list[str]:
    """Refuse weights that were chosen for other members.

    Returns:
        The members that were trained again since, so that their weights were chosen for other scores.

    Raises:
        ValueError: The members are not those of the fusion.
    """
    names = [member.name for member in members]
    if sorted(fusion["weights"]) != sorted(names):
        raise ValueError(
            f"the fusion was chosen for {', '.join(sorted(fusion['weights']))}, but the members are "
            f"{', '.join(sorted(names))}: run --pipelines=ensemble for these members first"
        )
    origins = _origins(members)
    return [name for name in names if fusion["members"][name]["weights"] != origins[name]["weights"]]


def fused_scores(members: Sequence[Member], weights: dict[str, float], fusion: FusionConfig) -> SliceScores:
    """The mixture of a slice in both directions; each is normalised along its own rows."""

    def mix(part: Slice, direction: str) -> ScoreSource:
        sources = [member.scores(part, fusion, direction) for member in members]
        return WeightedScores(sources, [weights[member.name] for member in members])

    return lambda part: (mix(part, "t2i"), mix(part, "i2t"))


def rank_slices(slices: Sequence[Slice], scores: SliceScores, top_k: int) -> pd.DataFrame:
    """Rankings of every slice, both directions: `split, group, direction, query_id, rank, gallery_id, score`."""
    tables: list[pd.DataFrame] = []
    for part in slices:
        if not (part.text_ids and part.image_ids):
            continue
        forward, backward = scores(part)
        sides = [("t2i", forward, part.text_ids, part.image_ids)]
        sides.append(("i2t", Transposed(forward) if backward is None else backward, part.image_ids, part.text_ids))
        for direction, source, queries, gallery in sides:
            table = ranking_table(queries, gallery, rank(source, None, top_k))
            table.insert(0, "direction", direction)
            table.insert(0, "group", part.group)
            table.insert(0, "split", part.split)
            tables.append(table)
    if not tables:
        raise ValueError("there is nothing to rank: no split of dev, val and test has both texts and images in a group")
    return pd.concat(tables, ignore_index=True)


def match_slices(slices: Sequence[Slice], scores: SliceScores) -> tuple[pd.DataFrame, list[str]]:
    """One-to-one matching of every slice.

    Returns:
        Columns `split, group, text_id, image_id, score, right` (null where there is no truth), and a line for each
        slice with the proof that no matching reaches a higher sum of scores.
    """
    tables: list[pd.DataFrame] = []
    proofs: list[str] = []
    for part in slices:
        if not (part.text_ids and part.image_ids):
            continue
        match = assign(scores(part)[0])
        proofs.append(f"{part.split}/{part.group}: {match.certificate}")
        table = pd.DataFrame(
            {
                "split": part.split,
                "group": part.group,
                "text_id": [part.text_ids[row] for row in match.query_rows],
                "image_id": [part.image_ids[row] for row in match.gallery_rows],
                "score": match.scores,
            }
        )
        right = pd.Series(np.asarray(part.relevance[match.query_rows, match.gallery_rows]), dtype="boolean")
        table["right"] = right if part.relevance.nnz else pd.NA
        tables.append(table)
    columns = ["split", "group", "text_id", "image_id", "score", "right"]
    return (pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)), proofs


def _origins(members: Sequence[Member]) -> dict[str, Any]:
    return {member.name: member.images.meta["fingerprints"] for member in members}


def _only(trial: pd.Series, names: Sequence[str]) -> str | None:
    """The member that a trial gave all weight to."""
    return next((name for name in names if trial[f"weight.{name}"] == 1.0), None)
