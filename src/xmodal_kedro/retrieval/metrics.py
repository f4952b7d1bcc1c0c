"""Retrieval metrics over the full gallery with many-to-many relevance, with intervals, chance and their protocol.

Everything is a value per query first; metrics are means of these (the median rank is their median), and intervals come
from resampling them. Queries without any relevant item cannot be judged: they are left out and counted.

- recall_at_K: 1 if any relevant item is among the first K.
- map_at_K: sum of p(i) over hits i <= K, divided by min(relevant items, K); p(i) is the precision of the first i.
- map_at_K_challenge: the same sum divided by the hits among the first K (by 1 if none), as CVPR 2023 track 2 was scored
  by its participants. It rewards short lists; standard mAP is the one to trust.
- ndcg_at_K: binary gains 1 / log2(1 + rank), divided by those of the ideal list.
- median_rank, mean_rank, mrr: of the best relevant item.
- matching_accuracy: share of queries whose one-to-one partner is relevant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from xmodal_kedro.retrieval.bootstrap import Statistic, interval
from xmodal_kedro.retrieval.chance import chance
from xmodal_kedro.retrieval.match import Match
from xmodal_kedro.retrieval.metric_names import parse
from xmodal_kedro.retrieval.rank import Ranking, rank, rank_both
from xmodal_kedro.retrieval.scores import ScoreSource

POOLED = "all"


@dataclass(frozen=True, eq=False)
class Judged:
    """Results of each judged query of one direction.

    Attributes:
        direction: `t2i` or `i2t`.
        values: Metric name to [n] fp64.
        rows: [n] query rows that could be judged.
        relevant: [n] number of relevant items of each.
        gallery: [n] size of the gallery that each was ranked in.
        queries: [n] number of queries that asked the same gallery.
        clusters: [n] queries with the same number are identical.
        skipped: Number of queries without any relevant item.
        gallery_size: Of the gallery; pooled groups add up.
        protocol: What was ranked against what.
    """

    direction: str
    values: dict[str, np.ndarray]
    rows: np.ndarray
    relevant: np.ndarray
    gallery: np.ndarray
    queries: np.ndarray
    clusters: np.ndarray
    skipped: int
    gallery_size: int
    protocol: str


def metric_names(ks: Sequence[int] = (1, 5, 10), also: Sequence[str] = ()) -> list[str]:
    """What `judge` computes from ranks, in the order of tables."""
    names = [
        *(f"recall_at_{k}" for k in ks),
        *("map_at_10", "map_at_10_challenge", "ndcg_at_10", "mrr", "median_rank", "mean_rank"),
    ]
    return list(dict.fromkeys([*names, *also]))


def per_query(metric: str, ranking: Ranking) -> np.ndarray:
    """Value of a metric for each query, [N] fp64; NaN for queries without any relevant item.

    Args:
        metric: Any name of the list above but `matching_accuracy`.
        ranking: With relevance.

    Raises:
        ValueError: There is no such metric, or the ranking was made without relevance.
    """
    if ranking.relevance is None or ranking.relevant_ranks is None:
        raise ValueError("this ranking was made without relevance (a blind split): it cannot be judged.")
    sizes = np.diff(ranking.relevance.indptr)  # [N]
    query = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((ranking.relevant_ranks, query))
    return from_ranks(metric, query, ranking.relevant_ranks[order], sizes)


def from_ranks(metric: str, query: np.ndarray, ranks: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Value of a metric for each query, from the ranks of its relevant items.

    Args:
        metric: As in `per_query`.
        query: [R] int, ascending: whose rank it is.
        ranks: [R] int from 1, ascending within a query; those above the metric's cut-off may be left out.
        relevant: [N] number of relevant items of each query.

    Returns:
        [N] fp64; NaN for queries without any relevant item.
    """
    kind, k = parse(metric)
    given = np.bincount(query, minlength=len(relevant))
    place = np.arange(len(ranks)) - np.repeat(np.cumsum(given) - given, given) + 1  # 1 for a query's best, 2, ...

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=weights, minlength=len(relevant)).astype(np.float64)

    hit = ranks <= k
    if kind == "recall":
        values = total(hit & (place == 1))
    elif kind == "map":
        values = total(hit * place / ranks) / np.clip(relevant, 1, k)
    elif kind == "map_challenge":
        values = total(hit * place / ranks) / np.maximum(total(hit), 1)
    elif kind == "ndcg":
        ideal = np.concatenate([[1.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
        values = total(hit / np.log2(1.0 + ranks)) / ideal[np.minimum(relevant, k)]
    elif kind == "mrr":
        values = total((place == 1) / ranks)
    elif kind in ("median_rank", "mean_rank"):
        values = total((place == 1) * ranks)
    else:
        raise ValueError(f"'{metric}' needs an assignment: give it to judge().")
    return np.where(relevant > 0, values, np.nan)


def entries(relevance: sparse.csr_array, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Whether each pair (queries[i], gallery[i]) is relevant, [K] bool."""
    found = sparse.csr_array(relevance, dtype=bool)[queries, gallery]
    return np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=bool).ravel()


def judge(
    ranking: Ranking,
    ks: Sequence[int] = (1, 5, 10),
    direction: str = "t2i",
    *,
    also: Sequence[str] = (),
    clusters: np.ndarray | None = None,
    match: Match | None = None,
) -> Judged:
    """All metrics of one direction, query by query.

    Args:
        ranking: With relevance.
        ks: Cut-offs of R@k.
        direction: A label.
        also: Names of more metrics, such as `map_at_50`.
        clusters: [N] int; identical queries share a number. None: all differ.
        match: An assignment of the same queries, for `matching_accuracy`.
    """
    values = {name: per_query(name, ranking) for name in metric_names(ks, also)}
    truth = ranking.relevance
    assert truth is not None  # per_query has checked
    n, m = ranking.shape
    if match is not None:
        values["matching_accuracy"] = _partner_is_right(match, truth)
    sizes = np.diff(truth.indptr)
    rows = np.flatnonzero(sizes)
    return Judged(
        direction=direction,
        values={name: column[rows] for name, column in values.items()},
        rows=rows,
        relevant=sizes[rows].astype(np.int64),
        gallery=np.full(len(rows), m),
        queries=np.full(len(rows), n),
        clusters=rows if clusters is None else np.asarray(clusters)[rows],
        skipped=n - len(rows),
        gallery_size=m,
        protocol=f"each of {n} queries over the full gallery of {m}, many-to-many relevance, {ranking.ties} ties",
    )


def judge_both(
    scores: ScoreSource,
    relevance: sparse.sparray | sparse.spmatrix,
    ks: Sequence[int] = (1, 5, 10),
    *,
    also: Sequence[str] = (),
    backward: ScoreSource | None = None,
    clusters: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    match: Match | None = None,
) -> tuple[Judged, Judged]:
    """Rank and judge texts over images (t2i) and images over texts (i2t).

    Args:
        scores: [N, M]; rows are texts.
        relevance: [N, M] sparse.
        ks: Cut-offs of R@k.
        also: Names of more metrics.
        backward: [M, N] scores of images over texts where they are not the transpose (row normalisations); otherwise
            both directions are ranked in one pass.
        clusters: Of the texts [N] and of the images [M].
        match: An assignment of texts to images; judged with t2i.
    """
    if backward is None:
        rankings = rank_both(scores, relevance, 0)
    else:
        rankings = rank(scores, relevance, 0), rank(backward, relevance.T, 0)
    return (
        judge(rankings[0], ks, "t2i", also=also, clusters=clusters[0], match=match),
        judge(rankings[1], ks, "i2t", also=also, clusters=clusters[1]),
    )


def pool(parts: Sequence[Judged]) -> Judged:
    """Groups as one: every query keeps the result that it had within its own group, and counts once.

    Only metrics that all groups have are kept.
    """
    names = [name for name in parts[0].values if all(name in part.values for part in parts)]
    starts = np.cumsum([0, *(int(part.clusters.max(initial=-1)) + 1 for part in parts)])
    return Judged(
        direction=parts[0].direction,
        values={name: np.concatenate([part.values[name] for part in parts]) for name in names},
        rows=np.concatenate([part.rows for part in parts]),
        relevant=np.concatenate([part.relevant for part in parts]),
        gallery=np.concatenate([part.gallery for part in parts]),
        queries=np.concatenate([part.queries for part in parts]),
        clusters=np.concatenate([part.clusters + start for part, start in zip(parts, starts, strict=False)]),
        skipped=sum(part.skipped for part in parts),
        gallery_size=sum(part.gallery_size for part in parts),
        protocol="mean over queries, each within its own group: " + "; ".join(dict.fromkeys(p.protocol for p in parts)),
    )


def by_label(judged: Judged, labels: Sequence[Any] | np.ndarray, at_least: int = 1) -> dict[str, Judged]:
    """The queries of each label, such as an attribute: each query keeps the result it had in the full gallery.

    Args:
        judged: One direction.
        labels: [N] a label for every query, judged or not; None and NaN leave a query out.
        at_least: Labels with fewer judged queries are left out: their intervals would say nothing.

    Returns:
        Label to its part, those with most queries first; `metric_table` takes them as groups, each part in a list.
    """
    codes, names = pd.factorize(pd.Series(list(labels), dtype=object))
    codes = codes[judged.rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    chosen = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code] >= max(1, at_least)]
    return {str(names[code]): _part(judged, codes == code) for code in chosen}


def metric_table(groups: Mapping[str, Sequence[Judged]], *, bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Long table of metrics, one row per group, direction and metric.

    Args:
        groups: Group name to its judged directions. With more than one group, rows of the group `all` pool them.
        bootstrap: Resamples behind the 95 % intervals; 0 leaves them out (NaN).
        seed: Of the resampling.

    Returns:
        Columns `group, direction, metric, value, low, high, chance, n_queries, n_skipped, n_gallery, protocol`;
        `n_gallery` of pooled rows is the sum of the galleries.
    """
    sections = [(name, judged) for name, parts in groups.items() for judged in parts]
    if len(groups) > 1:
        for direction in dict.fromkeys(judged.direction for _, judged in sections):
            sections.append((POOLED, pool([judged for _, judged in sections if judged.direction == direction])))
    return pd.DataFrame([row for group, judged in sections for row in _rows(group, judged, bootstrap, seed)])


def _part(judged: Judged, where: np.ndarray) -> Judged:
    return replace(
        judged,
        values={name: column[where] for name, column in judged.values.items()},
        rows=judged.rows[where],
        relevant=judged.relevant[where],
        gallery=judged.gallery[where],
        queries=judged.queries[where],
        clusters=judged.clusters[where],
        skipped=0,
    )


def _partner_is_right(match: Match, truth: sparse.csr_array) -> np.ndarray:
    partner = match.gallery_row_of()
    right = np.zeros(len(partner))
    has = partner >= 0
    right[has] = entries(truth, np.flatnonzero(has), partner[has])
    return right


def _rows(group: str, judged: Judged, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    found: dict[str, tuple[float, float, float]] = {}
    by_median = [name for name in judged.values if name == "median_rank"]
    by_mean = [name for name in judged.values if name not in by_median]
    statistics: list[tuple[Statistic, list[str]]] = [("mean", by_mean), ("median", by_median)]
    for statistic, names in statistics:
        if not names:
            continue
        values = np.stack([judged.values[name] for name in names], axis=1)  # [n, V]: they share their resamples
        low, high = interval(values, statistic, clusters=judged.clusters, resamples=bootstrap, seed=seed)
        if len(values):
            centre = np.median(values, axis=0) if statistic == "median" else values.mean(axis=0)
        else:
            centre = np.full(len(names), np.nan)
        found |= {name: (float(c), float(a), float(b)) for name, c, a, b in zip(names, centre, low, high, strict=True)}
    return [
        {
            "group": group,
            "direction": judged.direction,
            "metric": name,
            "value": found[name][0],
            "low": found[name][1],
            "high": found[name][2],
            "chance": chance(name, judged.relevant, judged.gallery, judged.queries),
            "n_queries": len(judged.rows),
            "n_skipped": judged.skipped,
            "n_gallery": judged.gallery_size,
            "protocol": judged.protocol,
        }
        for name in judged.values
    ]
