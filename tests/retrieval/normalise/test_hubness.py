"""Normalisations against hubs equal their papers' formulas, keep their word on noise, and never meet NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.reference import hubness as reference
from xmodal_kedro.retrieval.normalise import NORMALISATIONS, Setting, normalisation, normalised, sinkhorn
from xmodal_kedro.retrieval.normalise import statistics as statistics_module
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, MatrixScores, ScoreSource, Transposed

torch.set_num_threads(1)
EVERY = sorted(NORMALISATIONS)


def unit(rng: np.random.Generator, n: int, d: int, offset: float = 0.0) -> np.ndarray:
    vectors = rng.standard_normal((n, d)) + offset
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def values(source: ScoreSource) -> np.ndarray:
    n, m = source.shape
    return source.pairs(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)).view(n, m).numpy()


def formula(name: str, scores: np.ndarray, bank: np.ndarray, setting: Setting) -> np.ndarray:
    scores, bank, t = scores.astype(np.float64), bank.astype(np.float64), setting.temperature
    if name.startswith("csls"):
        return reference.csls(scores, bank if name.endswith("bank") else scores, setting.neighbours)
    if name.startswith("inverted_softmax"):
        return reference.inverted_softmax(scores, bank if name.endswith("bank") else scores, t)
    if name == "dual_softmax_transductive":
        return reference.dual_softmax(scores, t)
    if name == "sinkhorn_transductive":
        return reference.sinkhorn(scores, t, setting.iterations)
    assert name == "qb_norm"
    found, changed = reference.qb_norm(scores, bank, t)
    return np.where(changed[:, None], t * np.log(np.where(changed[:, None], found, 1.0)), found)


HUB = [
    *("csls_bank", "csls_transductive", "dual_softmax_transductive", "inverted_softmax_bank"),
    *("inverted_softmax_transductive", "qb_norm", "sinkhorn_transductive"),
]


def test_every_name_is_tested_here_or_with_the_rows() -> None:
    assert set(HUB) | {"none", "row_l2", "zscore", "minmax", "softmax", "rank"} == set(NORMALISATIONS)
    for name in EVERY:
        assert NORMALISATIONS[name].transductive == name.endswith("_transductive")
        assert NORMALISATIONS[name].banked == (name.endswith("_bank") or name == "qb_norm")


@pytest.mark.parametrize("name", HUB)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 7),
    m=st.integers(1, 9),
    temperature=st.sampled_from([0.02, 0.5]),
    count=st.integers(1, 4),
    flip=st.booleans(),
)
def test_equals_the_formula(name: str, seed: int, n: int, m: int, temperature: float, count: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1.0, 1.0, size=(n, m)).astype(np.float32)
    scores[0] = scores[0, 0]  # a constant row
    bank = rng.uniform(-1.0, 1.0, size=(5, m)).astype(np.float32)
    source = Transposed(MatrixScores(scores.T.copy())) if flip else MatrixScores(scores)
    setting = Setting(temperature, neighbours=count, iterations=count, bank=MatrixScores(bank))
    found = values(normalised(source, name, setting))
    np.testing.assert_allclose(found, formula(name, scores, bank, setting), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HUB)
def test_embeddings_stream_over_uneven_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    texts, images, bank = unit(rng, 60, 16, 0.3), unit(rng, 45, 16, 0.3), unit(rng, 30, 16, 0.3)
    setting = Setting(0.05, 4, 6, EmbeddingScores(bank, images))
    scores, others = (part.astype(np.float64) @ images.astype(np.float64).T for part in (texts, bank))
    expected = formula(name, scores, others, setting)
    source = EmbeddingScores(texts, images)
    np.testing.assert_allclose(values(normalised(source, name, setting)), expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(statistics_module, "CPU_TILE", (7, 11))
    monkeypatch.setattr(sinkhorn, "CPU_BLOCK", 45 * 17)
    monkeypatch.setattr(sinkhorn, "WIDTH", 13)
    small = normalised(source, name, setting)
    np.testing.assert_allclose(values(small), expected, rtol=1e-4, atol=1e-6)
    top = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    assert np.array_equal(rank(small, None, 5).top_rows, top)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("temperature", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("name", EVERY)
def test_tiles_are_as_near_to_the_exact_scores_as_they_say(name: str, temperature: float, coarse: bool) -> None:
    rng = np.random.default_rng(4)
    texts, images = unit(rng, 40, 24, 0.2), unit(rng, 70, 24, 0.2)
    images[50:55] = images[3]  # ties
    images[60] = texts[1]
    setting = Setting(temperature, 3, 4, EmbeddingScores(unit(rng, 20, 24, 0.2), images))
    for source in (EmbeddingScores(texts, images), Transposed(EmbeddingScores(images, texts))):
        scaled = normalised(source, name, setting)
        exact = values(scaled)
        assert np.isfinite(exact).all()
        for rows, columns in (
            (slice(0, 40), slice(0, 70)),
            (slice(33, 40), slice(48, 63)),
            (slice(1, 2), slice(0, 70)),
        ):
            scores, noise = scaled.tile(rows, columns, coarse=coarse)
            assert scores.dtype == torch.float32
            assert bool(torch.isfinite(scores).all())
            assert not bool(noise.isnan().any())
            apart = (scores.double() - torch.from_numpy(exact[rows, columns])).abs()
            # an exact score is meant as fp32
            allowed = noise.double() + torch.from_numpy(np.abs(exact[rows, columns])) * 2.0**-24
            assert bool((apart <= allowed).all()), float((apart - allowed).max())
        assert (exact[:, 50:55] == exact[:, 50:51]).all()


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_no_exponential_swallows_the_order_of_a_row(temperature: float) -> None:
    scores = np.random.default_rng(5).uniform(-1.0, 1.0, size=(6, 300)).astype(np.float32)
    scaled = normalised(MatrixScores(scores), "softmax", Setting(temperature))
    exact, tile = values(scaled), scaled.tile(slice(0, 6), slice(0, 300)).scores.numpy()
    assert all(len(set(row)) == 300 for row in exact)  # e^-2000 is 0 in fp64
    assert all(len(set(row)) > 250 for row in tile)  # and e^-104 in fp32
    assert np.array_equal(np.argsort(exact, axis=1), np.argsort(scores, axis=1))
    np.testing.assert_allclose(exact.sum(1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("tile", [(40, 70), (7, 9), (1, 1)])
@pytest.mark.parametrize("name", EVERY)
def test_tile_sizes_change_no_ranking(name: str, tile: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    texts, images = unit(rng, 12, 8), unit(rng, 30, 8)
    images[20:24] = images[2]
    setting = Setting(0.01, 3, 4, EmbeddingScores(unit(rng, 9, 8), images))
    source = normalised(EmbeddingScores(texts, images), name, setting)
    relevance = torch.eye(12, 30).bool().numpy()
    found = rank(source, sparse.csr_array(relevance), 6, tile=tile)
    exact = values(source)
    assert np.array_equal(found.top_rows, np.argsort(-exact, axis=1, kind="stable")[:, :6])
    assert found.relevant_ranks is not None
    assert found.relevant_ranks.tolist() == [int((row >= row[i]).sum()) for i, row in enumerate(exact)]


def test_a_hub_is_made_to_share() -> None:
    rng = np.random.default_rng(7)
    images = unit(rng, 50, 128)
    texts = 0.7 * images + 0.1 * unit(rng, 50, 128) + images[0]  # item 0 is near to every query
    source = EmbeddingScores(texts, images)
    before = (rank(source, None, 1).top_rows == 0).sum()
    assert before > 10
    setting = Setting(0.05, 10, 10, EmbeddingScores(texts[25:], images))
    for name in HUB:
        half = (
            EmbeddingScores(texts[:25], images) if name in ("csls_bank", "inverted_softmax_bank", "qb_norm") else source
        )
        top = rank(normalised(half, name, setting), None, 1).top_rows[:, 0]
        assert (top == 0).sum() <= 3, name
        assert (top == np.arange(len(top))).mean() >= 0.9, name


@pytest.mark.parametrize("name", [name for name in EVERY if not NORMALISATIONS[name].transductive])
def test_only_transductive_ones_look_at_other_queries(name: str) -> None:
    rng = np.random.default_rng(8)
    texts, images = unit(rng, 20, 8), unit(rng, 15, 8)
    setting = Setting(0.05, bank=EmbeddingScores(unit(rng, 9, 8), images))
    together = values(normalised(EmbeddingScores(texts, images), name, setting))
    alone = values(normalised(EmbeddingScores(texts[4:5], images), name, setting))
    np.testing.assert_allclose(together[4:5], alone, rtol=1e-5)


def test_sinkhorn_survives_columns_that_fp32_loses() -> None:
    scores = np.full((4, 5), 1.0, dtype=np.float32)
    scores[:, 3] = -1.0  # e^-2000 of the others at a temperature of 0.001
    scores[2, 3] = -0.9
    source = normalised(MatrixScores(scores), "sinkhorn_transductive", Setting(0.001, iterations=3))
    found = values(source)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(0), 4 / 5, rtol=1e-3)
    assert found[:, 3].argmax() == 2


@pytest.mark.parametrize("name", EVERY)
def test_no_queries_one_query_one_item_and_no_items(name: str) -> None:
    bank = MatrixScores(np.array([[0.3]]))
    assert normalised(MatrixScores(np.zeros((0, 1))), name, Setting(bank=bank)).shape == (0, 1)
    one = normalised(MatrixScores(np.array([[0.5]])), name, Setting(bank=bank))
    assert np.isfinite(values(one)).all()
    empty = MatrixScores(np.zeros((2, 0)))
    if name != "none":
        with pytest.raises(ValueError, match="gallery is empty"):
            normalised(empty, name, Setting(bank=empty))


@pytest.mark.parametrize("name", [name for name in EVERY if NORMALISATIONS[name].banked])
def test_a_bank_must_be_there_and_fit(name: str) -> None:
    source = MatrixScores(np.zeros((2, 3)))
    for bank in (None, MatrixScores(np.zeros((2, 4))), MatrixScores(np.zeros((0, 3)))):
        with pytest.raises(
            ValueError, match=f"'{name}' needs a bank of other queries, scored against the same 3 items"
        ):
            normalised(source, name, Setting(bank=bank))


def test_names_do_not_hide_transduction() -> None:
    with pytest.raises(ValueError, match="must end in _transductive"):
        normalisation("hidden", transductive=True)(lambda source, setting: source)
    with pytest.raises(ValueError, match="must end in _transductive"):
        normalisation("boasting_transductive")(lambda source, setting: source)
