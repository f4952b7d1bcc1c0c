"""Assignments reach the best sum of all one-to-one matchings, and prove it: every shape, method, rule and tie."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.reference import matching as reference
from tests.retrieval.match.judging import METHODS, judged, vectors
from xmodal_kedro.retrieval.match import assign, best_of_each
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, Tile

torch.set_num_threads(1)


def small_scores(seed, n, m, kind):
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return rng.integers(-1, 2, size=(n, m)).astype(np.float32) / 2
    if kind == "equal":
        return np.full((n, m), rng.standard_normal(), dtype=np.float32)
    return (rng.standard_normal((n, m)) * 10.0 ** rng.integers(-3, 4) - rng.integers(0, 50)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["ties", "equal", "any"]))
def test_best_sum_of_all_matchings(method, seed, n, m, kind):
    scores = small_scores(seed, n, m, kind)
    judged(assign(MatrixScores(scores), method=method), scores, best=reference.best_of_all(scores.astype(np.float64)))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["ties", "any"]),
    st.sampled_from([0.2, 0.6, 0.9, 1.0]),
    st.booleans(),
)
def test_as_many_pairs_as_can_be_then_the_best_sum(method, seed, n, m, kind, share, groups):
    scores = small_scores(seed, n, m, kind)
    rng = np.random.default_rng(seed)
    forbidden = rng.random((n, m)) < share
    allowed, labels = ~forbidden, {}
    if groups:
        query, gallery = rng.integers(0, 3, n), rng.integers(0, 3, m)
        allowed = allowed & (query[:, None] == gallery)
        labels = {"query_groups": query, "gallery_groups": torch.from_numpy(gallery)}
    best = reference.best_of_all(scores.astype(np.float64), allowed)
    source = MatrixScores(scores)
    judged(assign(source, forbidden=sparse.csr_array(forbidden), method=method, **labels), scores, allowed, best=best)
    by_allowed = assign(source, allowed=sparse.coo_array(~forbidden), method=method, **labels)
    judged(by_allowed, scores, allowed, best=best)
    both = assign(source, allowed=sparse.coo_array(~forbidden), forbidden=sparse.csr_matrix((n, m)), **labels)
    judged(both, scores, allowed, best=best)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("method", METHODS)
def test_larger_squares_against_all_permutations(n, method):
    scores = small_scores(n, n, n, "any")
    judged(assign(MatrixScores(scores), method=method), scores, best=reference.best_of_all(scores.astype(np.float64)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["random", "duplicates", "clusters"]), st.sampled_from(METHODS))
def test_the_order_of_rows_does_not_matter(seed, kind, method):
    queries, gallery = vectors(seed, 70, 90, kind)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(70), rng.permutation(90)
    first = assign(EmbeddingScores(queries, gallery), method=method)
    second = assign(EmbeddingScores(queries[rows], gallery[columns]), method=method)
    assert second.certificate.value == pytest.approx(first.certificate.value, rel=1e-12)
    if kind == "random":  # one optimum: the very same pairs
        assert dict(zip(rows[second.query_rows], columns[second.gallery_rows], strict=True)) == dict(
            zip(first.query_rows, first.gallery_rows, strict=True)
        )


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_tiles_may_be_wrong_by_their_noise(noise):
    """Tiles with errors as large as they admit, in the worst direction: the result stays exact."""
    scores = np.random.default_rng(7).standard_normal((150, 170)).astype(np.float32)

    class Noisy(MatrixScores):
        def tile(self, queries, gallery, *, coarse=False):
            exact = super().tile(queries, gallery).scores
            error = noise * (1.0 if coarse else 0.1)
            signs = torch.from_numpy(np.random.default_rng(8).choice([-1.0, 1.0], size=exact.shape)).float()
            return Tile(exact + error * signs, torch.full((1, exact.shape[1]), error + 1e-6))

    judged(assign(Noisy(scores), method="sparse"), scores, best=reference.dense(scores))


def test_large_offsets_and_small_differences():
    rng = np.random.default_rng(9)
    scores = (1000 + rng.integers(0, 50, size=(90, 90)) / 64).astype(np.float32)
    judged(assign(MatrixScores(scores), method="sparse"), scores, best=reference.dense(scores))


def test_one_to_one_undoes_a_hub():
    scores = np.array([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3], [0.9, 0.1, 0.7]])
    assert best_of_each(MatrixScores(scores)).gallery_rows.tolist() == [0, 0, 0]
    assert best_of_each(MatrixScores(scores)).certificate is None
    assert assign(MatrixScores(scores)).gallery_rows.tolist() == [1, 0, 2]
    assert assign(MatrixScores(scores[:2])).gallery_row_of().tolist() == [1, 0]
    assert assign(MatrixScores(scores[:, :1])).gallery_row_of().tolist() == [-1, 0, -1]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_nothing_to_match(shape, method):
    scores = MatrixScores(np.zeros(shape))
    for match in (assign(scores, method=method), best_of_each(scores)):
        assert len(match.query_rows) == 0
        assert match.gallery_row_of().tolist() == [-1] * shape[0]
    assert assign(scores, method=method).certificate.gap == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rules", ["forbidden", "allowed", "groups"])
def test_nothing_may_be_matched(method, rules):
    scores = MatrixScores(np.random.default_rng(10).standard_normal((4, 6)))
    given = {
        "forbidden": {"forbidden": sparse.csr_array(np.ones((4, 6)))},
        "allowed": {"allowed": sparse.csr_array((4, 6))},
        "groups": {"query_groups": [0] * 4, "gallery_groups": [1] * 6},
    }[rules]
    match = assign(scores, method=method, **given)
    assert match.gallery_row_of().tolist() == [-1] * 4
    assert match.certificate.value == 0.0
    assert match.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert match.certificate.bound >= match.certificate.value


def test_what_does_not_fit_is_refused():
    scores = MatrixScores(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=re.escape("'forbidden' has shape (4, 3), the scores have (3, 4)")):
        assign(scores, forbidden=sparse.csr_array((4, 3)))
    with pytest.raises(ValueError, match=re.escape("'allowed' has shape (3, 3), the scores have (3, 4)")):
        assign(scores, allowed=sparse.csr_array((3, 3)))
    with pytest.raises(ValueError, match="give query_groups and gallery_groups, or neither"):
        assign(scores, query_groups=[0, 0, 1])
    with pytest.raises(ValueError, match="gallery_groups has shape"):
        assign(scores, query_groups=[0, 0, 1], gallery_groups=[0, 0, 1])
    with pytest.raises(ValueError, match="method is 'hungarian'; it must be auto, dense or sparse"):
        assign(scores, method="hungarian")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_a_score_that_is_not_finite_is_named_by_its_rows(method, shape):
    queries, gallery = np.ones((shape[0], 2), dtype=np.float32), np.ones((shape[1], 2), dtype=np.float32)

    class Broken:
        shape, device = (len(queries), len(gallery)), torch.device("cpu")
        sound = EmbeddingScores(queries, gallery)

        def tile(self, queries, gallery, *, coarse=False):
            found = self.sound.tile(queries, gallery, coarse=coarse)
            rows, columns = np.arange(queries.start, queries.stop), np.arange(gallery.start, gallery.stop)
            found.scores[torch.from_numpy((rows[:, None] == 4) & (columns == 3))] = torch.nan
            return found

        def pairs(self, queries, gallery):
            return torch.where((queries == 4) & (gallery == 3), torch.nan, self.sound.pairs(queries, gallery))

    broken = Broken()
    named = "score of query row 4 and gallery row 3 is not a finite number"
    with pytest.raises(ValueError, match=named):
        assign(broken, method=method)
    rows, columns = np.arange(shape[0]) % 2, np.arange(1, shape[1] + 1) % 2
    with pytest.raises(ValueError, match=named):
        assign(broken, query_groups=rows, gallery_groups=columns, method=method)


@pytest.mark.parametrize("rules", ["allowed", "forbidden"])
def test_one_more_pair_is_worth_any_loss_of_score(rules):
    """Row 0 takes item 0 alone; the others would rather take the item before their own; the last may take none."""
    n = 12
    scores = np.eye(n, k=-1, dtype=np.float32)
    allowed = (np.eye(n) + np.eye(n, k=-1)).astype(bool)
    allowed[-1] = False
    pairs = sparse.csr_array(allowed if rules == "allowed" else ~allowed)
    match = assign(MatrixScores(scores), **{rules: pairs}, method="sparse")
    assert match.gallery_row_of().tolist() == [*range(n - 1), -1]
    judged(match, scores, allowed, best=(n - 1, 0.0))
