"""Metrics equal their definitions query by query, and tables pool groups, count what is skipped and state chance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.reference import metrics as reference
from xmodal_kedro.retrieval.match import assign
from xmodal_kedro.retrieval.metric_names import higher_is_better, parse
from xmodal_kedro.retrieval.metrics import by_label, judge, judge_both, metric_names, metric_table, per_query, pool
from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Transposed

torch.set_num_threads(1)
NAMES = [*metric_names((1, 3, 10)), "map_at_3", "map_at_1_challenge", "ndcg_at_2"]


def tied(seed, n=6, m=12, share=0.3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, size=(n, m)) / 4.0, rng.random((n, m)) < share


def cell(table, metric, direction="t2i", group="all"):
    rows = table[(table.metric == metric) & (table.direction == direction) & (table.group == group)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("metric", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15), st.sampled_from([0.05, 0.3, 0.9]))
def test_every_metric_is_its_definition(metric, seed, m, share):
    scores, relevance = tied(seed, 5, m, share)
    values = per_query(metric, rank(MatrixScores(scores), sparse.csr_array(relevance), 0))
    for row in range(5):
        if relevance[row].any():
            right = reference.ranked(scores[row], relevance[row])
            assert values[row] == pytest.approx(reference.value(metric, right), abs=1e-12)
        else:
            assert np.isnan(values[row])


def test_worked_example_of_the_two_average_precisions():
    # three of four relevant items in the first ten, at places 1, 3 and 10
    scores = -np.arange(12.0)[None]
    relevance = np.zeros((1, 12), dtype=bool)
    relevance[0, [0, 2, 9, 11]] = True
    ranking = rank(MatrixScores(scores), sparse.csr_array(relevance), 0)
    total = 1 / 1 + 2 / 3 + 3 / 10
    assert per_query("map_at_10", ranking)[0] == pytest.approx(total / 4)
    assert per_query("map_at_10_challenge", ranking)[0] == pytest.approx(total / 3)
    assert per_query("recall_at_1", ranking)[0] == 1
    assert per_query("mrr", ranking)[0] == 1


def test_table_of_both_directions():
    scores, relevance = tied(3)
    relevance[2] = False
    table = metric_table({"all": judge_both(MatrixScores(scores), sparse.csr_array(relevance), (1, 5))}, bootstrap=50)
    assert list(table.columns[:6]) == ["group", "direction", "metric", "value", "low", "high"]
    assert set(table.direction) == {"t2i", "i2t"}
    for direction, s, r in [("t2i", scores, relevance), ("i2t", scores.T, relevance.T)]:
        judged = [i for i in range(len(s)) if r[i].any()]
        lists = [reference.ranked(s[i], r[i]) for i in judged]
        for metric in metric_names((1, 5)):
            row = cell(table, metric, direction)
            values = [reference.value(metric, right) for right in lists]
            assert row.value == pytest.approx(np.median(values) if metric == "median_rank" else np.mean(values))
            assert row.low <= row.value <= row.high
            assert (row.n_queries, row.n_skipped, row.n_gallery) == (len(judged), len(s) - len(judged), s.shape[1])
            assert f"full gallery of {s.shape[1]}" in row.protocol


def test_groups_are_ranked_on_their_own_and_pooled_by_query():
    parts = {"vehicle": tied(1, 4, 9), "pedestrian": tied(2, 10, 5)}
    judged = {name: judge_both(MatrixScores(s), sparse.csr_array(r), (1,)) for name, (s, r) in parts.items()}
    table = metric_table(judged, bootstrap=0)
    values = [
        reference.value("map_at_10", reference.ranked(s[i], r[i]))
        for s, r in parts.values()
        for i in range(len(s))
        if r[i].any()
    ]
    row = cell(table, "map_at_10")
    assert row.value == pytest.approx(np.mean(values))
    assert row.n_queries == len(values)
    assert row.n_gallery == 9 + 5
    assert np.isnan(row.low)
    ranks = np.concatenate([part[0].values["median_rank"] for part in judged.values()])
    assert cell(table, "median_rank").value == np.median(ranks)
    chances = [cell(table, "map_at_10", group=name) for name in parts]
    assert row.chance == pytest.approx(np.average([c.chance for c in chances], weights=[c.n_queries for c in chances]))


def test_labels_keep_the_results_of_the_full_gallery():
    scores, relevance = tied(4, 7, 9, 0.4)
    relevance[2] = False
    judged, _ = judge_both(MatrixScores(scores), sparse.csr_array(relevance), (1,))
    parts = by_label(judged, ["red", "blue", "red", None, "blue", "red", "green"])
    assert list(parts) == ["red", "blue", "green"]  # query 2 cannot be judged, query 3 has no label
    assert parts["red"].rows.tolist() == [0, 5]
    assert list(by_label(judged, ["red", "blue", "red", None, "blue", "red", "green"], at_least=2)) == ["red", "blue"]
    table = metric_table({label: [part] for label, part in parts.items()}, bootstrap=20)
    values = [reference.value("mrr", reference.ranked(scores[row], relevance[row])) for row in (0, 5)]
    row = cell(table, "mrr", group="red")
    assert row.value == pytest.approx(np.mean(values))
    assert (row.n_queries, row.n_gallery) == (2, 9)
    assert row.low <= row.value <= row.high


def test_pooling_keeps_clusters_of_groups_apart():
    scores, relevance = tied(1, 4, 6, 0.9)
    ranking = rank(MatrixScores(scores), sparse.csr_array(relevance), 0)
    part = judge(ranking, clusters=np.array([0, 0, 1, 0]))
    pooled = pool([part, part])
    assert len(np.unique(pooled.clusters)) == 4
    assert pooled.clusters[:4].tolist() == [0, 0, 1, 0]


def test_identical_queries_widen_the_interval():
    rng = np.random.default_rng(0)
    once = rng.standard_normal((30, 8))
    queries, gallery = np.repeat(once, 10, axis=0), rng.standard_normal((300, 8))
    relevance = sparse.csr_array(rng.random((30, 300)).repeat(10, axis=0) < 0.1)
    clusters = np.repeat(np.arange(30), 10)
    source = EmbeddingScores(queries, gallery)
    apart = metric_table({"all": judge_both(source, relevance)}, bootstrap=300)
    together = metric_table({"all": judge_both(source, relevance, clusters=(clusters, None))}, bootstrap=300)
    a, b = cell(apart, "map_at_10"), cell(together, "map_at_10")
    assert a.value == b.value
    assert b.high - b.low > 2 * (a.high - a.low)
    assert cell(together, "mrr", "i2t").low == cell(apart, "mrr", "i2t").low


def test_row_normalised_directions_are_ranked_on_their_own():
    scores, relevance = tied(5)
    source = MatrixScores(scores)
    plain = judge_both(source, sparse.csr_array(relevance))
    rows = judge_both(
        normalised(source, "zscore"), sparse.csr_array(relevance), backward=normalised(Transposed(source), "zscore")
    )
    for one, other in zip(plain, rows, strict=True):  # a row's order is not changed by its own normalisation
        for name in one.values:
            assert np.array_equal(one.values[name], other.values[name])


def test_matching_accuracy_counts_queries_without_partner():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.1, 0.6]])
    relevance = sparse.csr_array(np.array([[1, 0], [0, 1], [0, 1]], dtype=bool))
    source = MatrixScores(scores)
    both = judge_both(source, relevance, match=assign(source))
    assert both[0].values["matching_accuracy"].tolist() == [1, 1, 0]
    assert "matching_accuracy" not in both[1].values
    row = cell(metric_table({"all": both}, bootstrap=0), "matching_accuracy")
    assert row.value == pytest.approx(2 / 3)
    assert row.chance == pytest.approx(1 / 3)


def test_nothing_to_judge():
    def table_of(shape):
        judged = judge_both(MatrixScores(np.zeros(shape)), sparse.csr_array(shape, dtype=bool))
        return metric_table({"all": judged}, bootstrap=10)

    table = table_of((3, 4))
    assert table.value.isna().all()
    assert table.chance.isna().all()
    assert (table.n_queries == 0).all()
    assert cell(table, "mrr").n_skipped == 3
    assert len(table_of((0, 0))) == len(table)


def test_a_blind_ranking_cannot_be_judged():
    with pytest.raises(ValueError, match="blind split"):
        judge(rank(MatrixScores(np.zeros((1, 2))), None, 1))


@pytest.mark.parametrize("name", ["recall", "recall_at_0", "recall_at_5_challenge", "map@10", "", "precision_at_1"])
def test_unknown_metrics_are_refused(name):
    with pytest.raises(ValueError, match="there is no metric"):
        parse(name)


def test_names():
    assert parse("map_at_10_challenge") == ("map_challenge", 10)
    assert parse("recall_at_5") == ("recall", 5)
    assert not higher_is_better("mean_rank")
    assert higher_is_better("map_at_10")
