"""Every registered fusion keeps the promises of a score source; reciprocal ranks and what is learned equal formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import sparse

from tests.reference.fusion import reciprocal_rank
from xmodal_kedro.config.ensemble import FusionConfig
from xmodal_kedro.retrieval.fuse import FUSIONS, DevPart
from xmodal_kedro.retrieval.fuse.candidates import find_candidates
from xmodal_kedro.retrieval.fuse.learned import FOLDS, crossfitted, features_of, fit
from xmodal_kedro.retrieval.fuse.reciprocal_rank import reciprocal_rank_scores
from xmodal_kedro.retrieval.fuse.weights import full_values, mixture_values
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, WeightedScores

torch.set_num_threads(1)
NAMES = ("a", "b", "c")


def part(seed: int, n: int = 30, m: int = 40, levels: int = 0) -> DevPart:
    rng = np.random.default_rng(seed)
    relevance = rng.random((n, m)) < 0.08
    matrices = {name: relevance * s + rng.standard_normal((n, m)) for name, s in zip(NAMES, (3, 2, 1), strict=True)}
    if levels:
        matrices = {name: np.round(matrix * levels) / levels for name, matrix in matrices.items()}
    return DevPart({name: MatrixScores(matrix) for name, matrix in matrices.items()}, sparse.csr_array(relevance))


def turned(one: DevPart) -> DevPart:
    return DevPart({n: MatrixScores(s.matrix.T) for n, s in one.sources.items()}, one.relevance.T.tocsr())


def whole(source) -> np.ndarray:
    n, m = source.shape
    rows, columns = (i.flatten() for i in torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij"))
    return source.pairs(rows, columns).view(n, m).numpy()


@pytest.mark.parametrize("method", FUSIONS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("candidates", [5, 100])
def test_every_fusion_is_saved_as_json_and_is_an_exact_source(method, direction, candidates):
    dev = {"t2i": {"g": part(0), "h": part(1, 20, 25)}, "i2t": {"g": turned(part(0)), "h": turned(part(1, 20, 25))}}
    config = FusionConfig(method=method, candidates=candidates, metric="map_at_5")
    chosen = json.loads(json.dumps(FUSIONS[method].choose(NAMES, dev.__getitem__, config)))
    assert sum(chosen["weights"].values()) == pytest.approx(1.0)
    assert [gain["over"] for gain in chosen["gains"]] == ["a", "equal"]
    assert chosen["value"] > max(chosen["alone"].values()) - 0.05
    sources = (part(2) if direction == "t2i" else turned(part(2))).sources
    fused = FUSIONS[method].fuse(dict(reversed(sources.items())), chosen, direction, config)  # in any order
    exact = whole(fused)
    n, m = fused.shape
    np.testing.assert_allclose(exact, whole(FUSIONS[method].fuse(sources, chosen, direction, config)), atol=1e-12)
    for queries, gallery in ((slice(0, n), slice(0, m)), (slice(3, 7), slice(5, 18)), (slice(4, 4), slice(0, 2))):
        for coarse in (False, True):
            scores, noise = fused.tile(queries, gallery, coarse=coarse)
            wrong = (scores - torch.from_numpy(exact[queries, gallery]).float()).abs()
            assert bool((wrong <= noise).all())
    if method != "weighted" and candidates == 5:
        used = [source for name, source in sources.items() if chosen["weights"][name] > 0]
        found = find_candidates(used, 5)
        is_listed = np.zeros((n, m), bool)
        is_listed[found.queries, found.items] = True
        assert (exact[is_listed] > 0).all()
        assert (exact[~is_listed] <= 0).all()
        tail = whole(WeightedScores(list(sources.values()), [chosen["weights"][name] for name in sources]))
        for row in range(n):  # behind the candidates all stand as in the mixture
            behind = np.flatnonzero(~is_listed[row])
            assert (np.argsort(-exact[row, behind]) == np.argsort(-tail[row, behind])).all()


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("candidates", [3, 40])
def test_reciprocal_ranks_are_those_of_the_formula(levels, candidates):
    one, weights = part(3, levels=levels), [0.5, 0.2, 0.3]
    fused = whole(reciprocal_rank_scores(list(one.sources.values()), weights, candidates))
    rows = [source.matrix.double().numpy() for source in one.sources.values()]
    for row in range(len(fused)):
        slow = np.array(reciprocal_rank([matrix[row].tolist() for matrix in rows], weights, candidates))
        np.testing.assert_allclose(np.where(fused[row] > 0, fused[row], 0.0), slow, rtol=0, atol=1e-15)


def test_reciprocal_ranks_search_what_they_fuse_and_ask_nothing_of_members_without_weight():
    dev = {"g": part(4), "h": part(5, 20, 25)}
    config = FusionConfig(method="reciprocal_rank", candidates=10)
    chosen = FUSIONS["reciprocal_rank"].choose(NAMES, lambda direction: dev, config)
    fused = {n: FUSIONS["reciprocal_rank"].fuse(p.sources, chosen, "t2i", config) for n, p in dev.items()}
    assert full_values(dev, "map_at_10", fused).mean() == pytest.approx(chosen["value"], abs=1e-12)
    given = {"weights": {"a": 1.0, "b": 0.0, "c": 0.0}}
    broken = dict(part(6).sources) | {"b": None, "c": None}
    source = FUSIONS["reciprocal_rank"].fuse(broken, given, "t2i", config)
    assert (rank(source, None, 10).top_rows == rank(broken["a"], None, 10).top_rows).all()


def test_identical_items_tie_by_reciprocal_ranks():
    rng = np.random.default_rng(7)
    gallery = rng.standard_normal((20, 6))
    gallery[10:] = gallery[:10]
    sources = [EmbeddingScores(rng.standard_normal((5, 6)), gallery) for _ in range(2)]
    exact = whole(reciprocal_rank_scores(sources, [0.5, 0.5], 20))
    assert (exact[:, :10] == exact[:, 10:]).all()


def noisy(seed: int, n: int = 150, m: int = 60) -> DevPart:
    """A good member, and one that is worth little but speaks louder."""
    rng = np.random.default_rng(seed)
    relevance = np.zeros((n, m), bool)
    relevance[np.arange(n), rng.integers(0, m, n)] = True
    good = relevance * 2.5 + rng.standard_normal((n, m))
    loud = 20 * (0.5 * relevance + rng.standard_normal((n, m)))
    return DevPart({"good": MatrixScores(good), "loud": MatrixScores(loud)}, sparse.csr_array(relevance))


def test_what_is_learned_beats_equal_weights_and_holds_on_other_queries():
    config = FusionConfig(method="learned", candidates=20)
    dev = {"g": noisy(0)}
    chosen = FUSIONS["learned"].choose(("good", "loud"), lambda way: dev if way == "t2i" else {"g": turned(dev["g"])},
                                       config)  # fmt: skip
    val = {"g": noisy(1)}
    fused = {"g": FUSIONS["learned"].fuse(val["g"].sources, chosen, "t2i", config)}
    learned = full_values(val, "map_at_10", fused).mean()
    assert learned > mixture_values(val, "map_at_10", (0.5, 0.5)).mean() + 0.2
    assert learned > mixture_values(val, "map_at_10", (1.0, 0.0)).mean() - 0.02
    assert chosen["value"] == pytest.approx(learned, abs=0.1)
    assert chosen["gains"][1]["low"] > 0
    again = FUSIONS["learned"].choose(("good", "loud"), lambda way: dev if way == "t2i" else {"g": turned(dev["g"])},
                                      config)  # fmt: skip
    assert again == chosen


def test_probabilities_are_those_of_the_coefficients():
    one = part(8)
    found = find_candidates(list(one.sources.values()), 10)
    model = fit([one], 10)
    assert (found.ranks.min(), found.ranks.max()) == (1, 11)
    rows = np.array([source.matrix.numpy() for source in one.sources.values()], dtype=np.float64)
    for place in (0, 7, len(found.queries) - 1):
        query, item = found.queries[place], found.items[place]
        logit = model.intercept
        for number, row in enumerate(rows[:, query]):
            position = 1 + (row > row[item]).sum()
            features = (row[item], np.log(min(position, 11)), row.max() - row[item])
            for kind, value in enumerate(features):
                shift, scale = model.shift[kind][number], model.scale[kind][number]
                logit += model.coefficients[kind][number] * (value - shift) * scale
        assert model.probability(found)[place] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)


def test_the_solution_is_where_the_loss_is_flat():
    one = part(9)
    found, model = find_candidates(list(one.sources.values()), 10), fit([one], 10)
    judged = np.asarray(one.relevance.sum(1)).ravel() > 0
    use = judged[found.queries]
    error = (model.probability(found) - one.relevance.toarray()[found.queries, found.items])[use]
    assert abs(error.mean()) < 1e-5
    features = np.array(features_of(found))[:, :, use]
    for kind, member in np.ndindex(features.shape[:2]):
        x = (features[kind, member] - model.shift[kind][member]) * model.scale[kind][member]
        assert abs((x * error).mean() + 1e-4 * model.coefficients[kind][member]) < 1e-5


def test_no_query_is_judged_by_what_was_learned_from_it_or_its_twins():
    # scores say nothing; only whoever has seen a query's own truth could do better than chance
    rng = np.random.default_rng(10)
    n, m = 60, 30
    scores = np.repeat(rng.standard_normal((n // 6, m)), 6, axis=0)
    relevance = np.repeat(rng.random((n // 6, m)) < 0.1, 6, axis=0)
    relevance[:, 0] = True
    clusters = np.repeat(np.arange(n // 6), 6)
    learned_from: list[set] = []
    import xmodal_kedro.retrieval.fuse.learned as learned

    original = learned._solve

    def watched(examples):
        examples = list(examples)
        learned_from.append({int(q) for one in examples for q in one.found.queries[one.use]})
        return original(examples)

    one = DevPart({"a": MatrixScores(scores)}, sparse.csr_array(relevance), clusters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "_solve", watched)
        crossfitted({"g": one}, "map_at_10", 30)
    assert len(learned_from) == FOLDS
    for queries in learned_from:
        left_out = set(range(n)) - queries
        assert left_out
        assert not {clusters[q] for q in queries} & {clusters[q] for q in left_out}
    assert set.union(*(set(range(n)) - queries for queries in learned_from)) == set(range(n))


def test_too_little_to_learn_from_is_refused():
    lonely = DevPart({"a": MatrixScores(np.eye(3))}, sparse.csr_array(np.eye(3)), np.zeros(3, int))
    with pytest.raises(ValueError, match="two different queries of dev"):
        crossfitted({"g": lonely}, "map_at_10", 3)


def test_no_query_at_all():
    empty = [MatrixScores(np.zeros((0, 4)))] * 2
    assert reciprocal_rank_scores(empty, [0.5, 0.5], 3).shape == (0, 4)
