"""Members, their mixture and what re-ranking makes of it, judged on the same queries and compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.ensemble import EvaluationConfig, FusionConfig
from xmodal_kedro.retrieval.bootstrap import paired_difference
from xmodal_kedro.retrieval.ensemble import Member, fused_scores
from xmodal_kedro.retrieval.judge import embedding_scores, judge_slices
from xmodal_kedro.retrieval.metrics import Judged, pool
from xmodal_kedro.retrieval.rerank import reordered
from xmodal_kedro.retrieval.slices import Slice

ENSEMBLE = "ensemble"
FUSED = "fused"  # the ensemble before its re-ranking
DIRECTIONS = ("t2i", "i2t")

Standings = dict[str, dict[str, dict[str, list[Judged]]]]
"""Name -> split -> group -> both directions; the ensemble last."""


def judge_standings(
    members: Sequence[Member],
    slices: Sequence[Slice],
    chosen: Mapping[str, Any],
    fusion: FusionConfig,
    ks: Sequence[int],
    reranking: pd.DataFrame | None = None,
) -> Standings:
    """Judge each member by itself, and the ensemble; where it re-ranks, its mixture without that as well, as `fused`.

    Args:
        members: Those that are mixed.
        slices: Of the splits that have truth.
        chosen: Of `choose_weights`.
        fusion: How the members' scores are normalised and fused.
        ks: Cut-offs of R@k.
        reranking: Of `rerank_slices`.
    """
    mixture = fused_scores(members, chosen, fusion)
    everybody = {one.name: embedding_scores(one.texts, one.images) for one in members}
    if reranking is not None:
        everybody[FUSED] = mixture
    everybody[ENSEMBLE] = reordered(mixture, reranking)
    return {name: judge_slices(slices, scores, ks, [fusion.metric]) for name, scores in everybody.items()}


def compare_standings(
    standings: Standings, fusion: FusionConfig, evaluation: EvaluationConfig, reranked: Sequence[str] = ("t2i",)
) -> pd.DataFrame:
    """The ensemble against everybody else on val (dev where there is no val), paired.

    Args:
        standings: Of `judge_standings`.
        fusion: Its metric comes first.
        evaluation: Cut-offs of R@k, and the seed of the resampling.
        reranked: Directions that are re-ranked, where any is.

    Returns:
        Columns of `compare` with `split` in front and, where there is a dev split, `best_on_dev`: the member that one
        would have chosen instead of the ensemble. `fused` is compared in `reranked` alone: nothing else has changed.
    """
    split = "val" if "val" in standings[ENSEMBLE] else "dev"
    metrics = list(dict.fromkeys([fusion.metric, *(f"recall_at_{k}" for k in evaluation.ks)]))
    others = {name: found[split] for name, found in standings.items() if name != ENSEMBLE}
    table = compare(standings[ENSEMBLE][split], others, metrics, evaluation.seed)
    table = table[(table["member"] != FUSED) | table["direction"].isin(list(reranked))].reset_index(drop=True)
    table.insert(0, "split", split)
    if "dev" in standings[ENSEMBLE]:
        on_dev = {name: found["dev"] for name, found in standings.items() if name not in (ENSEMBLE, FUSED)}
        table["best_on_dev"] = table["member"] == best_member(on_dev, fusion)
    return table


def best_ranks(standings: Standings) -> dict[str, np.ndarray]:
    """Ranks of the best relevant image of every text of val (dev where there is no val), by name."""
    split = "val" if "val" in standings[ENSEMBLE] else "dev"
    return {
        name: np.concatenate([both[0].values["mean_rank"] for both in found[split].values()])
        for name, found in standings.items()
    }


def compare(
    mixture: dict[str, list[Judged]], members: dict[str, dict[str, list[Judged]]], metrics: Sequence[str], seed: int
) -> pd.DataFrame:
    """The mixture against each member on the same queries, paired.

    Args:
        mixture: Group to judged directions, of one split.
        members: The same of each member.
        metrics: Which ones.
        seed: Of the resampling.

    Returns:
        Columns `member, direction, metric, ensemble, alone, difference, low, high, p`: the difference over the pooled
        queries with its 95 % interval, and the p of a randomisation test.
    """
    rows = []
    for name, groups in members.items():
        for place, direction in enumerate(DIRECTIONS):
            ours = pool([judged[place] for judged in mixture.values()])
            theirs = pool([judged[place] for judged in groups.values()])
            for metric in metrics:
                a, b = ours.values[metric], theirs.values[metric]
                found = paired_difference(a, b, clusters=ours.clusters, seed=seed)
                row = {
                    "member": name,
                    "direction": direction,
                    "metric": metric,
                    "ensemble": a.mean(),
                    "alone": b.mean(),
                }
                rows.append(row | {"difference": found.value, "low": found.low, "high": found.high, "p": found.p})
    return pd.DataFrame(rows)


def best_member(dev: dict[str, dict[str, list[Judged]]], fusion: FusionConfig) -> str:
    """The member that is best on dev by the metric and direction of the fusion, over all groups."""
    place = DIRECTIONS.index(fusion.direction)
    values = {
        name: pool([judged[place] for judged in groups.values()]).values[fusion.metric].mean()
        for name, groups in dev.items()
    }
    return max(values, key=lambda name: values[name])
