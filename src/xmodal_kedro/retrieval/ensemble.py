"""The members of an ensemble as one: weights chosen on dev, scores mixed per slice, rankings and matchings of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.ensemble import BANKED, READ, FusionConfig
from xmodal_kedro.retrieval.embeddings import Embeddings, check_made_by
from xmodal_kedro.retrieval.fuse import FUSIONS, DevPart
from xmodal_kedro.retrieval.judge import SliceScores
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank, ranking_table
from xmodal_kedro.retrieval.scores import EmbeddingScores, ScoreSource, Transposed
from xmodal_kedro.retrieval.slices import Slice


@dataclass(frozen=True)
class Member:
    """Both sides of one member's embeddings."""

    name: str
    texts: Embeddings
    images: Embeddings

    def scores(self, part: Slice, fusion: FusionConfig, direction: str) -> ScoreSource:
        """Normalised scores of a slice: texts over images for `t2i`, images over texts for `i2t`."""
        texts, images = self.texts.take(part.text_ids), self.images.take(part.image_ids)
        source: ScoreSource = EmbeddingScores(texts, images, ids=(part.text_ids, part.image_ids))
        name = fusion.normalisation_of(self.name)
        bank = None
        if name in BANKED:
            queries, gallery = (self.texts, images) if direction == "t2i" else (self.images, texts)
            bank = EmbeddingScores(_bank_of(queries, part.group, fusion), gallery)
        setting = Setting(fusion.temperature, fusion.neighbours, fusion.iterations, bank)
        return normalised(source if direction == "t2i" else Transposed(source), name, setting)


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
    """What the fusion of the config needs to know, looked up on dev: re-ranking comes after.

    Returns:
        What `Fusion.choose` returns (`chosen`, `weights`, and where dev was asked `split`, `value`, `alone` and
        `gains`; of a learned fusion `coefficients`), and `metric`, `direction`, `settings`, `members`.

    Raises:
        ValueError: Weights are given for members that do not exist, or none is above zero; or dev has no pair where
            the fusion asks it.
    """

    @cache
    def parts(direction: str) -> dict[str, DevPart]:
        found = {
            part.group: DevPart(
                {member.name: member.scores(part, fusion, direction) for member in members},
                part.relevance if direction == "t2i" else part.relevance.T,
                part.clusters if direction == "t2i" else None,
            )
            for part in dev
            if part.relevance.nnz
        }
        if not found:
            raise ValueError(
                "there is no dev pair to search weights on or to learn from: set ensemble.fusion.weights to equal, or "
                "give them, and ensemble.fusion.method to weighted or reciprocal_rank"
            )
        return found

    names = [member.name for member in members]
    choice = {"metric": fusion.metric, "direction": fusion.direction, "members": _origins(members)}
    return choice | {"settings": _settings(names, fusion)} | FUSIONS[fusion.method].choose(names, parts, fusion)


def check_fusion(chosen: dict[str, Any], members: Sequence[Member], fusion: FusionConfig) -> list[str]:
    """Refuse what was chosen for other members, or for other scores of theirs.

    Returns:
        The members that were trained again since, so that their weights were chosen for other scores.

    Raises:
        ValueError: The members, or what the config says of their scores and fusion, are not those of the choice.
    """
    names = [member.name for member in members]
    if sorted(chosen["weights"]) != sorted(names):
        raise ValueError(
            f"the fusion was chosen for {', '.join(sorted(chosen['weights']))}, but the members are "
            f"{', '.join(sorted(names))}: run --pipelines=ensemble for these members first"
        )
    then, now = chosen.get("settings", {}), _settings(names, fusion)
    if changed := [f"{key} {then.get(key)} (now {now[key]})" for key in now if then.get(key) != now[key]]:
        raise ValueError(
            f"the fusion was chosen with ensemble.fusion {', '.join(changed)}: run --pipelines=ensemble with these "
            "settings first"
        )
    origins = _origins(members)
    return [name for name in names if chosen["members"][name]["weights"] != origins[name]["weights"]]


def fused_scores(members: Sequence[Member], chosen: Mapping[str, Any], fusion: FusionConfig) -> SliceScores:
    """The members as one, in both directions of a slice; each is normalised along its own rows.

    Args:
        members: In any order; those of weight 0 cost nothing.
        chosen: Of `choose_weights`: `weights`, and what else the fusion of the config needs.
        fusion: Its method, and how the members' scores are normalised.
    """
    used = [member for member in members if chosen["weights"][member.name] > 0.0]

    def fuse(part: Slice, direction: str) -> ScoreSource:
        sources = {member.name: member.scores(part, fusion, direction) for member in used}
        return FUSIONS[fusion.method].fuse(sources, chosen, direction, fusion)

    return lambda part: (fuse(part, "t2i"), fuse(part, "i2t"))


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


def _bank_of(embeddings: Embeddings, group: str, fusion: FusionConfig) -> np.ndarray:
    """Vectors [B, D] of train that stand for queries of a group."""
    rows = embeddings.bank_rows(group)
    if len(rows) == 0 or embeddings.meta.get("bank_size") != fusion.bank_size:
        there = f"one of size {embeddings.meta['bank_size']}" if len(rows) else "none"
        raise ValueError(
            f"ensemble.fusion normalises '{embeddings.meta['member']}' with a bank of train of bank_size "
            f"{fusion.bank_size}, but {embeddings} hold {there}: run --pipelines=evaluate again"
        )
    return np.asarray(embeddings.matrix[rows])


def _origins(members: Sequence[Member]) -> dict[str, Any]:
    return {member.name: member.images.meta["fingerprints"] for member in members}


def _settings(names: Sequence[str], fusion: FusionConfig) -> dict[str, Any]:
    """What fused scores depend on beside the members: the keys that fusion and normalisations read."""
    normalisations = {name: fusion.normalisation_of(name) for name in sorted(names)}
    keys = ["method"] + ["candidates"] * (fusion.method != "weighted") + ["weights"] * (fusion.method != "learned")
    read = {key for name in normalisations.values() for key in READ.get(name, ())}
    return {key: getattr(fusion, key) for key in [*keys, *sorted(read)]} | {"normalisations": normalisations}
