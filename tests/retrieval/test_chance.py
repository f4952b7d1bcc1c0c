"""Closed forms of chance equal the mean over every possible order of the gallery."""

import itertools

import numpy as np
import pytest

from tests.reference import metrics as reference
from xmodal_kedro.retrieval.chance import chance

METRICS = ["recall_at_1", "recall_at_3", "map_at_1", "map_at_3", "map_at_10", "map_at_3_challenge",
           "map_at_10_challenge", "ndcg_at_3", "mrr", "mean_rank"]  # fmt: skip


def orders(relevant: int, gallery: int) -> list[list[bool]]:
    return [[i in places for i in range(gallery)] for places in itertools.combinations(range(gallery), relevant)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("relevant", "gallery"), [(1, 1), (1, 5), (2, 2), (2, 7), (4, 6), (5, 12)])
def test_mean_over_all_orders(metric, relevant, gallery):
    expected = np.mean([reference.value(metric, right) for right in orders(relevant, gallery)])
    found = chance(metric, np.array([relevant]), np.array([gallery]), np.array([1]))
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("metric", METRICS)
def test_queries_are_averaged(metric):
    relevant, gallery = np.array([1, 3, 1]), np.array([5, 8, 5])
    each = [chance(metric, np.array([r]), np.array([m]), np.array([1])) for r, m in zip(relevant, gallery, strict=True)]
    assert chance(metric, relevant, gallery, np.ones(3, int)) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("sizes", [[(1, 9)], [(2, 10)], [(1, 5), (3, 12), (3, 12)]])
def test_median_rank_is_that_of_all_orders_pooled(sizes):
    weights = {}
    for relevant, gallery in sizes:
        ranks = [right.index(True) + 1 for right in orders(relevant, gallery)]
        for rank in ranks:
            weights[rank] = weights.get(rank, 0.0) + 1 / len(ranks) / len(sizes)
    total, expected = 0.0, None
    for rank in sorted(weights):
        total += weights[rank]
        if expected is None and total >= 0.5 - 1e-12:
            expected = rank
    relevant, gallery = np.array(sizes).T
    assert chance("median_rank", relevant, gallery, np.ones(len(sizes), int)) == expected


def test_matching_by_lot():
    for queries, gallery in [(3, 3), (2, 4), (4, 2)]:
        hits = []
        short, long = min(queries, gallery), max(queries, gallery)
        for chosen in itertools.permutations(range(long), short):
            sides = (range(short), chosen) if queries <= gallery else (chosen, range(short))
            pairs = list(zip(*sides, strict=True))
            hits.append(float((0, 1) in pairs))  # item 1 is the only right one for query 0
        found = chance("matching_accuracy", np.array([1]), np.array([gallery]), np.array([queries]))
        assert found == pytest.approx(np.mean(hits))


def test_large_galleries():
    # one relevant item in a million: the chance of R@10 is ten in a million
    found = chance("recall_at_10", np.array([1]), np.array([10**6]), np.array([1]))
    assert found == pytest.approx(1e-5, abs=1e-8)
    assert np.isnan(chance("mrr", np.array([], int), np.array([], int), np.array([], int)))
