"""Nodes of ensemble, which predict uses as well: the members' embeddings to rankings and files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EnsembleConfig, EvaluationConfig

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from xmodal_kedro.retrieval.embeddings import Embeddings
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Figure = Embeddings = Any

log = logging.getLogger(__name__)

RANKED = ["dev", "val", "test"]


def choose_fusion(
    captions: DataFrame, relevance: RelevanceConfig, ensemble: EnsembleConfig, *embeddings: Embeddings
) -> dict[str, Any]:
    """Weights of the members, searched on dev unless the recipe gives them."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.ensemble import choose_weights, pair_members
    from xmodal_kedro.retrieval.slices import cut_slices

    members = pair_members(embeddings, table_fingerprint(captions))
    fusion = choose_weights(members, cut_slices(captions, relevance, ["dev"]), ensemble.fusion)
    log.info("Weights (%s): %s", fusion["chosen"], {name: round(w, 3) for name, w in fusion["weights"].items()})
    return fusion


def rank_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    *embeddings: Embeddings,
) -> tuple[DataFrame, DataFrame]:
    """Fuse, and rank and match every split that has texts and images; each group on its own."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.ensemble import check_fusion, fused_scores, match_slices, pair_members, rank_slices
    from xmodal_kedro.retrieval.slices import cut_slices

    members = pair_members(embeddings, table_fingerprint(captions))
    for name in check_fusion(fusion, members):
        log.warning("%s was trained again since its weight was chosen: run --pipelines=ensemble to choose anew", name)
    slices = cut_slices(captions, relevance, RANKED)
    scores = fused_scores(members, fusion["weights"], ensemble.fusion)
    ranking = rank_slices(slices, scores, max(ensemble.fusion.top_k, ensemble.submission.top_k))
    matching, left_out = match_slices(slices, scores)
    for reason in left_out:
        log.warning("Not matched one to one: %s", reason)
    return ranking, matching


def judge_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    evaluation: EvaluationConfig,
    *embeddings: Embeddings,
) -> tuple[DataFrame, DataFrame, Figure, DataFrame, Figure]:
    """Judge the ensemble, and its members from the very embeddings that it combines.

    Returns:
        The ensemble's metrics on dev and val; on val its paired difference to each member, everybody's ranks, and the
        leaderboard as a table and as a figure.
    """
    import numpy as np
    import pandas as pd

    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.reporting.figures import leaderboard_bars, rank_histogram
    from xmodal_kedro.reporting.leaderboard import leaderboard
    from xmodal_kedro.retrieval.ensemble import best_member, compare, fused_scores, pair_members
    from xmodal_kedro.retrieval.judge import embedding_scores, judge_slices, judged_table
    from xmodal_kedro.retrieval.slices import cut_slices

    members = pair_members(embeddings, table_fingerprint(captions))
    slices = cut_slices(captions, relevance, ["dev", "val"])
    judged = judge_slices(slices, fused_scores(members, fusion["weights"], ensemble.fusion), evaluation.ks)
    alone = {
        member.name: judge_slices(slices, embedding_scores(member.texts, member.images), evaluation.ks)
        for member in members
    }
    split = "val" if "val" in judged else "dev"
    compared = dict.fromkeys([ensemble.fusion.metric, *(f"recall_at_{k}" for k in evaluation.ks)])
    of_members = {name: found[split] for name, found in alone.items()}
    comparison = compare(judged[split], of_members, list(compared), evaluation.seed)
    comparison.insert(0, "split", split)
    if "dev" in judged:
        best = best_member({name: found["dev"] for name, found in alone.items()}, ensemble.fusion)
        comparison["best_on_dev"] = comparison["member"] == best
    ranks = {
        name: np.concatenate([both[0].values["mean_rank"] for both in groups.values()])
        for name, groups in (of_members | {"ensemble": judged[split]}).items()
    }
    tables = [judged_table(name, found, evaluation) for name, found in [*alone.items(), ("ensemble", judged)]]
    metrics = pd.concat(tables, ignore_index=True)
    return tables[-1], comparison, rank_histogram(ranks), leaderboard(metrics), leaderboard_bars(metrics)


def write_submission(
    pairs: DataFrame, ranking: DataFrame, matching: DataFrame, ensemble: EnsembleConfig
) -> tuple[dict[str, Any], DataFrame]:
    """The ranked JSON and the one-to-one CSV of the split that the recipe submits, with its texts as they came."""
    from xmodal_kedro.reporting.submission import matching_csv, track2_submission

    options = ensemble.submission
    with_texts = set(pairs.loc[pairs["text_id"].notna(), "split"])
    split = options.split or ("test" if "test" in with_texts else "val")
    texts = pairs[pairs["split"] == split].dropna(subset=["text_id"]).drop_duplicates("text_id")
    if texts.empty:
        there = ", ".join(sorted(pairs["split"].unique()))
        raise ValueError(f"ensemble.submission.split is '{split}', which has no texts; the splits are {there}")
    ranked = ranking[(ranking["split"] == split) & (ranking["direction"] == "t2i")]
    matched = matching[matching["split"] == split]
    return (
        track2_submission(texts, ranked, options.top_k),
        matching_csv(texts, matched, options.name_column),
    )


def write_predictions(
    pairs: DataFrame, ranking: DataFrame, matching: DataFrame, ensemble: EnsembleConfig
) -> tuple[dict[str, Any], DataFrame]:
    """The same two files for new data, which is `test` whatever split the recipe submits."""
    submission = ensemble.submission.model_copy(update={"split": "test"})
    return write_submission(pairs, ranking, matching, ensemble.model_copy(update={"submission": submission}))
