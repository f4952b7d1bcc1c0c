"""Nodes of ensemble, which predict uses as well: the members' embeddings to rankings and files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import DataConfig, RelevanceConfig
from xmodal_kedro.config.ensemble import EnsembleConfig, EvaluationConfig, RuntimeConfig
from xmodal_kedro.config_loader import project_path

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from xmodal_kedro.data.image_store import ImageStore
    from xmodal_kedro.retrieval.embeddings import Embeddings
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Figure = Embeddings = ImageStore = Any

log = logging.getLogger(__name__)

RANKED = ["dev", "val", "test"]


def choose_fusion(
    captions: DataFrame, relevance: RelevanceConfig, ensemble: EnsembleConfig, **embeddings: Embeddings
) -> dict[str, Any]:
    """What the fusion needs to know: weights, searched on dev unless the recipe gives them, or coefficients."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.ensemble import choose_weights, pair_members
    from xmodal_kedro.retrieval.slices import cut_slices

    members = pair_members(list(embeddings.values()), table_fingerprint(captions))
    fusion = choose_weights(members, cut_slices(captions, relevance, ["dev"]), ensemble.fusion)
    log.info("Weights (%s): %s", fusion["chosen"], {name: round(w, 3) for name, w in fusion["weights"].items()})
    for gain in fusion.get("gains", ()):
        against = "equal weights" if gain["over"] == "equal" else f"{gain['over']} alone"
        text = f"{gain['value']:+.4f} {ensemble.fusion.metric} on dev over {against}"
        text += f" (95 % interval {gain['low']:+.4f} to {gain['high']:+.4f})"
        if gain["low"] <= 0.0:
            how = "includes 0" if gain["high"] >= 0.0 else "is a loss"
            log.warning("The fusion is not sure to help: %s %s", text, how)
        else:
            log.info("The fusion's gain: %s", text)
    return fusion


def rerank_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    runtime: RuntimeConfig,
    images: ImageStore | None = None,
    checkpoint: Path | None = None,
    **embeddings: Embeddings,
) -> DataFrame:
    """Look at the first candidates again, with the embeddings or the checkpoint of the member that the config names."""
    from xmodal_kedro.models.checkpoint import read_checkpoint
    from xmodal_kedro.retrieval.ensemble import fused_scores
    from xmodal_kedro.retrieval.rerank import rerank_slices
    from xmodal_kedro.retrieval.slices import cut_slices
    from xmodal_kedro.training.device import pick_device

    assert ensemble.rerank is not None, "the pipeline has this node only where ensemble.rerank is set"
    device = pick_device(runtime)
    members = {member.name: member for member in _members(captions, fusion, ensemble, embeddings)}
    scores = fused_scores(list(members.values()), fusion, ensemble.fusion)
    slices = cut_slices(captions, relevance, RANKED)
    if unknown := set(ensemble.rerank.top_ks) - {part.group for part in slices}:
        log.warning("ensemble.rerank.top_ks names %s: no group of this data", ", ".join(sorted(unknown)))
    loaded = None if checkpoint is None else read_checkpoint(checkpoint, device)
    reranking = rerank_slices(slices, scores, members[ensemble.rerank.member], ensemble.rerank, device, loaded, images)
    moved = (reranking["rank"] != reranking["first_rank"]).mean() if len(reranking) else 0.0
    log.info("Re-ranked %d candidates by %s: %.0f %% moved", len(reranking), ensemble.rerank.method, 100 * moved)
    return reranking


def calibrate_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    reranking: DataFrame | None = None,
    **embeddings: Embeddings,
) -> tuple[dict[str, Any], Figure]:
    """From cosines to probabilities that a first place is right: fitted on dev, judged on val."""
    from xmodal_kedro.reporting.reliability import reliability_figure
    from xmodal_kedro.retrieval.confidence import calibrate_slices
    from xmodal_kedro.retrieval.ensemble import fused_scores
    from xmodal_kedro.retrieval.rerank import reordered
    from xmodal_kedro.retrieval.slices import cut_slices

    members = _members(captions, fusion, ensemble, embeddings)
    scores = reordered(fused_scores(members, fusion, ensemble.fusion), reranking)
    slices = cut_slices(captions, relevance, ["dev", "val"])
    calibration = calibrate_slices(slices, members, scores, ensemble.calibration.precision)
    if not calibration["calibrated"]:
        log.warning("There is no dev pair to calibrate on: rankings will have no probabilities")
    for direction, groups in calibration["calibrated"].get("ensemble", {}).items():
        for group, entry in groups.items():
            log.info("Calibrated %s of %s: %s", direction, group, entry["threshold"] or "no threshold")
            if "note" in entry:
                log.warning("Calibration of %s of %s: %s", direction, group, entry["note"])
    return calibration, reliability_figure(calibration)


def rank_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    calibration: dict[str, Any],
    reranking: DataFrame | None = None,
    **embeddings: Embeddings,
) -> tuple[DataFrame, DataFrame]:
    """Fuse, and rank and match every split that has texts and images; each group on its own.

    The ranking also says how likely each first place is right, and whether that is enough for a match.
    """
    from xmodal_kedro.retrieval.confidence import with_probability
    from xmodal_kedro.retrieval.ensemble import check_fusion, fused_scores, match_slices, rank_slices
    from xmodal_kedro.retrieval.rerank import reordered
    from xmodal_kedro.retrieval.slices import cut_slices

    members = _members(captions, fusion, ensemble, embeddings)
    for name in check_fusion(fusion, members, ensemble.fusion):
        log.warning("%s was trained again since its weight was chosen: run --pipelines=ensemble to choose anew", name)
    slices = cut_slices(captions, relevance, RANKED)
    scores = reordered(fused_scores(members, fusion, ensemble.fusion), reranking)
    ranking = rank_slices(slices, scores, max(ensemble.fusion.top_k, ensemble.submission.top_k))
    ranking, reasons = with_probability(ranking, calibration, members)
    for reason in reasons:
        log.warning("No probabilities in the ranking: %s", reason)
    matching, proofs = match_slices(slices, scores)
    for proof in proofs:
        log.info("Matched one to one: %s", proof)
    return ranking, matching


def judge_ensemble(
    captions: DataFrame,
    fusion: dict[str, Any],
    relevance: RelevanceConfig,
    ensemble: EnsembleConfig,
    evaluation: EvaluationConfig,
    reranking: DataFrame | None = None,
    **embeddings: Embeddings,
) -> tuple[DataFrame, DataFrame, DataFrame, Figure, DataFrame, Figure]:
    """Judge the ensemble, and its members from the very embeddings that it combines.

    Returns:
        The ensemble's metrics on dev and val; on val its recalls, its paired difference to each member (and to itself
        before re-ranking, `fused`), everybody's ranks, and the leaderboard as a table and as a figure.
    """
    import pandas as pd

    from xmodal_kedro.reporting.figures import leaderboard_bars, rank_histogram
    from xmodal_kedro.reporting.leaderboard import leaderboard
    from xmodal_kedro.reporting.recalls import recall_table
    from xmodal_kedro.retrieval.judge import judged_table
    from xmodal_kedro.retrieval.slices import cut_slices
    from xmodal_kedro.retrieval.standings import best_ranks, compare_standings, judge_standings

    members = _members(captions, fusion, ensemble, embeddings)
    slices = cut_slices(captions, relevance, ["dev", "val"])
    standings = judge_standings(members, slices, fusion, ensemble.fusion, evaluation.ks, reranking)
    tables = [judged_table(name, found, evaluation) for name, found in standings.items()]
    metrics = pd.concat(tables, ignore_index=True)
    reranked = ensemble.rerank.directions if ensemble.rerank else []
    comparison = compare_standings(standings, ensemble.fusion, evaluation, reranked)
    histogram = rank_histogram(best_ranks(standings))
    return tables[-1], recall_table(tables[-1]), comparison, histogram, leaderboard(metrics), leaderboard_bars(metrics)


def write_submission(
    pairs: DataFrame, ranking: DataFrame, matching: DataFrame, ensemble: EnsembleConfig, data: DataConfig
) -> tuple[dict[str, Any], DataFrame]:
    """The ranked JSON and the one-to-one CSV of the split that the recipe submits, with its texts as they came."""
    from functools import partial

    from xmodal_kedro.reporting.submission import (
        fill_template,
        matching_csv,
        query_cells,
        shown_columns,
        track2_submission,
    )

    options = ensemble.submission
    with_texts = set(pairs.loc[pairs["text_id"].notna(), "split"])
    split = options.split or next((split for split in ("test", "val") if split in with_texts), "dev")
    texts = pairs[pairs["split"] == split].dropna(subset=["text_id"]).drop_duplicates("text_id")
    if texts.empty:
        there = ", ".join(sorted(pairs["split"].unique()))
        raise ValueError(f"ensemble.submission.split is '{split}', which has no texts; the splits are {there}")
    ranked = ranking[(ranking["split"] == split) & (ranking["direction"] == "t2i")]
    matched = matching[matching["split"] == split]
    answers = matching_csv(texts, matched, options.name_column)
    if empty := int((answers[options.name_column] == "").sum()):
        log.warning("%d of the %d texts of %s are matched to no image: their cells are empty", empty, len(texts), split)
    if options.template is not None:
        root = project_path() / data.root
        shown, cells = shown_columns(data, split), partial(query_cells, data, split, texts, root)
        key = "ensemble.submission.template"
        answers = fill_template(root / options.template, answers, texts, shown, key, cells)
    return track2_submission(texts, ranked, options.top_k), answers


def write_predictions(
    pairs: DataFrame, ranking: DataFrame, matching: DataFrame, ensemble: EnsembleConfig, predict: DataConfig
) -> tuple[dict[str, Any], DataFrame]:
    """The same two files for new data, which is `test` whatever split the recipe submits.

    A sample file is filled in where one lies below `predict.root`; new data need not come with one.
    """
    template = ensemble.submission.template
    if template is not None and not (project_path() / predict.root / template).is_file():
        log.info("No sample file %s below predict.root: the CSV has one column", template)
        template = None
    submission = ensemble.submission.model_copy(update={"split": "test", "template": template})
    return write_submission(pairs, ranking, matching, ensemble.model_copy(update={"submission": submission}), predict)


def _members(
    captions: DataFrame, fusion: dict[str, Any], ensemble: EnsembleConfig, embeddings: dict[str, Embeddings]
) -> list[Any]:
    """The members whose embeddings these are, if the fusion was chosen for them and for the settings of now."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.ensemble import check_fusion, pair_members

    members = pair_members(list(embeddings.values()), table_fingerprint(captions))
    check_fusion(fusion, members, ensemble.fusion)
    return members
