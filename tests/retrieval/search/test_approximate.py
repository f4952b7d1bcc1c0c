"""Indices of faiss: the same interface, true results where they look at everything, and recall that is measured."""

import sys

import numpy as np
import pytest

from tests.reference.search import best_k
from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.search import ExactIndex, FaissIndex, Found, build_index, measure_recall, open_index

EVERYTHING = [
    IndexConfig(kind="flat"),
    IndexConfig(kind="ivf", lists=8, probes=8),
    IndexConfig(kind="hnsw", links=16, breadth=2000),
]


@pytest.fixture(scope="module")
def vectors():
    """Clusters, as photos of the same things make them: gallery [2000, 16] and queries [50, 16]."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 16))
    found = centres[rng.integers(0, 40, 2050)] + 0.5 * rng.standard_normal((2050, 16))
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return found[:2000], found[2000:]


@pytest.mark.parametrize("config", EVERYTHING, ids=lambda config: config.kind)
def test_what_looks_at_everything_finds_what_fp64_finds(vectors, config):
    gallery, queries = vectors
    index = FaissIndex(gallery, config=config)
    scores, rows = best_k(queries, gallery, 10)
    found = index.search(queries, 10)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert (len(index), index.dimension, index.ids[3]) == (2000, 16, "3")


@pytest.mark.parametrize("config", EVERYTHING[:2], ids=lambda config: config.kind)
def test_only_allowed_rows_are_found(vectors, config):
    gallery, queries = vectors
    allowed = np.random.default_rng(1).random(2000) < 0.1
    found = FaissIndex(gallery, config=config).search(queries, 10, allowed=allowed)
    np.testing.assert_array_equal(found.rows, best_k(queries, gallery, 10, allowed)[1])


def test_a_graph_finds_allowed_rows_only_and_fills_up_with_nothing(vectors):
    gallery, queries = vectors
    allowed = np.zeros(2000, bool)
    allowed[::100] = True
    found = FaissIndex(gallery, config=IndexConfig(kind="hnsw", breadth=16)).search(queries, 10, allowed=allowed)
    assert found.rows.shape == (50, 10)
    assert (found.rows == -1).any()
    assert allowed[found.rows[found.rows >= 0]].all()
    np.testing.assert_array_equal(found.scores == -np.inf, found.rows == -1)


def test_shares_the_checks_and_edges_of_exact_search(vectors):
    gallery, queries = vectors
    index = FaissIndex(gallery[:5])
    assert index.search(queries, 9).rows.shape == (50, 5)
    assert index.search(queries[:0], 3).rows.shape == (0, 3)
    assert FaissIndex(gallery[:0]).search(queries, 3).rows.shape == (50, 0)
    assert index.search(queries, 3, allowed=np.zeros(5, bool)).rows.shape == (50, 0)
    with pytest.raises(ValueError, match="queries have 7 dimensions, the gallery has 16"):
        index.search(np.zeros((1, 7), np.float32))
    broken = gallery.copy()
    broken[1999, 0] = np.nan
    names = [f"photo {row}" for row in range(2000)]
    for config in EVERYTHING:
        with pytest.raises(ValueError, match="row 1999 of the gallery is not finite"):
            FaissIndex(broken, config=config)
        with pytest.raises(ValueError, match=r"row 1999 of the gallery \('photo 1999'\) is not finite"):
            FaissIndex(broken, names, config)


def test_exact_search_is_not_one_of_its_kinds(vectors):
    with pytest.raises(ValueError, match="for the kind exact use ExactIndex or build_index"):
        FaissIndex(vectors[0], config=IndexConfig(kind="exact"))


@pytest.mark.parametrize("config", EVERYTHING, ids=lambda config: config.kind)
def test_an_empty_gallery_is_saved_opened_and_answers_nothing(tmp_path, vectors, config):
    gallery, queries = vectors
    index = FaissIndex(gallery[:0], config=config)
    index.save(tmp_path / "index")
    for one in (index, open_index(tmp_path / "index"), open_index(tmp_path / "index", mmap=False)):
        assert len(one) == 0
        assert one.search(queries, 3).rows.shape == (50, 0)


def test_more_lists_than_rows_can_teach_are_refused(vectors):
    with pytest.raises(ValueError, match=r"index.lists is 100, but 200 rows are enough for 5 lists .* set lists to 5"):
        FaissIndex(vectors[0][:200], config=IndexConfig(kind="ivf", lists=100))
    assert FaissIndex(vectors[0][:200], config=IndexConfig(kind="ivf", lists=5)).index.nlist == 5
    assert FaissIndex(vectors[0][:3], config=IndexConfig(kind="ivf", lists=1)).index.nlist == 1


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("config", EVERYTHING, ids=lambda config: config.kind)
def test_saved_and_opened_it_finds_the_same(tmp_path, vectors, config, mmap):
    gallery, queries = vectors
    fingerprints = {"weights": "w1", "transform": "t"}
    names = np.array([f"i{row}" for row in range(2000)], dtype=object)
    embeddings = Embeddings(names, gallery, {"member": "vit", "side": "image", "fingerprints": fingerprints})
    index = build_index(embeddings, config)
    index.save(tmp_path / "index")
    again = open_index(tmp_path / "index", mmap=mmap, embeddings=embeddings)
    assert again.ids.tolist() == names.tolist()
    assert again.config == config
    np.testing.assert_array_equal(again.search(queries, 10).rows, index.search(queries, 10).rows)
    assert {path.name for path in (tmp_path / "index").iterdir()} == {
        "index.faiss",
        "ids.parquet",
        "meta.json",
        "MANIFEST.json",
    }
    other = Embeddings(names, gallery, {"member": "vit", "side": "text", "fingerprints": fingerprints})
    with pytest.raises(OtherOriginError, match=r"with side image, .* have side text"):
        open_index(tmp_path / "index", embeddings=other)


def test_lists_are_learned_from_a_seeded_sample(vectors):
    gallery, queries = vectors

    def found(seed):
        config = IndexConfig(kind="ivf", lists=20, probes=1, sample=39, seed=seed)
        return FaissIndex(gallery, config=config).search(queries, 10).rows

    np.testing.assert_array_equal(found(0), found(0))
    assert (found(0) != found(1)).any()


def test_default_lists_never_outnumber_what_they_can_be_learned_from(vectors):
    gallery, _ = vectors
    assert FaissIndex(gallery[:30], config=IndexConfig(kind="ivf")).index.nlist == 1
    assert FaissIndex(gallery, config=IndexConfig(kind="ivf")).index.nlist == 2000 // 39
    assert FaissIndex(gallery, config=IndexConfig(kind="ivf", probes=99)).index.nprobe == 2000 // 39


class Fixed:
    """An index that finds what it is told."""

    def __init__(self, ids, rows):
        self.ids, self.rows = ids, np.array(rows)

    def search(self, queries, k, *, allowed=None):
        return Found(np.zeros(self.rows.shape, np.float32), self.rows)


def test_recall_counts_rows_as_good_as_the_true_ones():
    gallery = np.array([[4.0], [3.0], [3.0], [1.0]], np.float32)
    exact = ExactIndex(gallery)
    queries = np.array([[1.0], [1.0], [1.0], [1.0]], np.float32)
    index = Fixed(exact.ids, [[0, 1], [0, 2], [0, 3], [-1, -1]])  # row 2 scores as much as row 1
    recall = measure_recall(index, exact, queries, k=2)
    assert recall.value == (1 + 1 + 0.5 + 0) / 4
    assert recall.low < recall.value < recall.high
    assert (recall.queries, recall.k) == (4, 2)
    with pytest.raises(ValueError, match="same gallery"):
        measure_recall(Fixed(exact.ids[:2], []), exact, queries)
    with pytest.raises(ValueError, match="needs queries"):
        measure_recall(index, exact, queries[:0])


def test_narrow_searches_miss_some_and_wide_ones_few(vectors):
    gallery, queries = vectors
    exact = ExactIndex(gallery)
    for kind, narrow, wide in (
        ("ivf", {"lists": 40, "probes": 1}, {"lists": 40, "probes": 30}),
        ("hnsw", {"links": 4, "breadth": 1, "construction": 8}, {"breadth": 500}),
    ):
        few = measure_recall(FaissIndex(gallery, config=IndexConfig(kind=kind, **narrow)), exact, queries)
        many = measure_recall(FaissIndex(gallery, config=IndexConfig(kind=kind, **wide)), exact, queries)
        assert few.value < 0.95 < many.value


def test_without_faiss_the_extra_is_named(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"xmodal-kedro\[search\]"):
        FaissIndex(vectors[0])
