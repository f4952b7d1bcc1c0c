"""Exact search: the order of fp64 products for every kind of gallery, whatever the filter, the tiles and the batch."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.search import best_k
from xmodal_kedro.data.manifest import BrokenArtifactError
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.search import ExactIndex, exact, open_index
from xmodal_kedro.retrieval.search.filter import Coarse, halved, whole


def gaussian(rng, n, d):
    return rng.standard_normal((n, d))


def crowded_cone(rng, n, d):
    """Directions so close together that bf16 without a mean could not tell one from another."""
    return unit(1.0 + 0.01 * rng.standard_normal((n, d)))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coarse_grid(rng, n, d):
    """Products that fp64 holds exactly, most of them several times."""
    return rng.integers(-2, 3, (n, d)) / 4


def mixed_lengths(rng, n, d):
    return rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-3, 3, (n, 1))


def repeated(rng, n, d):
    return np.repeat(unit(rng.standard_normal((n // 5 + 1, d))), 5, axis=0)[:n]


GALLERIES = [gaussian, crowded_cone, coarse_grid, mixed_lengths, repeated]


def make(kind, n, q, d=24, seed=0):
    rng = np.random.default_rng(seed)
    return kind(rng, n, d).astype(np.float32), kind(rng, q, d).astype(np.float32)


def check(index, queries, gallery, k, allowed=None):
    found = index.search(queries, k, allowed=allowed)
    scores, rows = best_k(queries, gallery, k, allowed)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores.astype(np.float32))
    assert found.scores.dtype == np.float32
    assert found.rows.dtype == np.int64


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kind", GALLERIES)
def test_finds_what_fp64_finds(kind, half):
    gallery, queries = make(kind, n=3001, q=7)
    check(ExactIndex(gallery, half=half), queries, gallery, k=10)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (31, 4), (33, 10), (257, 100), (4097, 1), (4200, 300)])
def test_uneven_sizes(n, k, half):
    gallery, queries = make(gaussian, n, q=3, d=6)
    check(ExactIndex(gallery, half=half), queries, gallery, k)


@pytest.mark.parametrize("half", [True, False])
def test_strips_and_batches_change_nothing(half):
    gallery, queries = make(gaussian, n=35_003, q=300, d=8)  # strips of 32 768 rows for chunks of 256 queries
    index = ExactIndex(gallery, half=half)
    together = index.search(queries, 5)
    some = [0, 255, 256, 299]
    check(index, queries[some], gallery, k=5)
    one_by_one = [index.search(queries[i : i + 1], 5) for i in some]
    np.testing.assert_array_equal(together.rows[some], np.concatenate([found.rows for found in one_by_one]))
    np.testing.assert_array_equal(together.scores[some], np.concatenate([found.scores for found in one_by_one]))


@pytest.mark.parametrize("half", [True, False])
def test_equal_rows_come_in_their_order_by_way_of_a_ranking(half, monkeypatch):
    calls = []
    ranking = exact.rank
    monkeypatch.setattr(exact, "rank", lambda scores, k: calls.append(scores.shape) or ranking(scores, k=k))
    gallery = np.ones((9000, 4), np.float32)
    gallery[7000] = 2.0
    queries = np.array([[1, 1, 1, 1], [-1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    found = ExactIndex(gallery, half=half).search(queries, 3)
    assert found.rows.tolist() == [[7000, 0, 1], [0, 1, 2], [0, 1, 2]]
    assert calls == [(3, 9000)]  # all of the gallery is in doubt
    allowed = np.ones(9000, bool)
    allowed[[0, 7000]] = False
    assert ExactIndex(gallery, half=half).search(queries, 2, allowed=allowed).rows.tolist() == [[1, 2]] * 3


def test_vectors_too_long_for_bf16_products():
    gallery, queries = make(gaussian, n=2000, q=2, d=4)
    queries[1] *= 2.0**61
    gallery *= 2.0**60
    check(ExactIndex(gallery, half=True), queries, gallery, k=3)


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0])
@pytest.mark.parametrize("half", [True, False])
def test_only_allowed_rows_are_found(share, half):
    gallery, queries = make(repeated, n=2000, q=4)
    allowed = np.random.default_rng(1).random(2000) < share
    index = ExactIndex(gallery, half=half)
    if share:
        check(index, queries, gallery, k=10, allowed=allowed)
    else:
        assert index.search(queries, 10, allowed=allowed).rows.shape == (4, 0)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 80), q=st.integers(1, 6), k=st.integers(1, 20), seed=st.integers(0, 10_000), half=st.booleans())
def test_an_order_of_the_gallery_is_only_a_matter_of_ties(n, q, k, seed, half):
    rng = np.random.default_rng(seed)
    gallery, queries = coarse_grid(rng, n, 5).astype(np.float32), coarse_grid(rng, q, 5).astype(np.float32)
    order = rng.permutation(n)
    found = ExactIndex(gallery, half=half).search(queries, k)
    moved = ExactIndex(gallery[order], half=half).search(queries, k)
    np.testing.assert_array_equal(found.scores, moved.scores)
    np.testing.assert_array_equal(found.scores, np.einsum("qd,qkd->qk", queries, gallery[found.rows]))


@pytest.mark.parametrize("make_filter", [halved, whole])
@pytest.mark.parametrize("n_queries", [1, 3, 40])
def test_no_coarse_score_is_off_by_more_than_it_says(make_filter, n_queries):
    generator = torch.Generator().manual_seed(0)
    for spread in (0.0, 1.0):
        # entries that lose most when they are rounded to bf16: 1 + 2^-8 lies half-way between two of its numbers
        signs = torch.randint(0, 2, (500, 33), generator=generator) * 2.0 - 1
        gallery = signs * (1 + 2.0**-8) + spread * torch.randn(500, 33, generator=generator)
        queries = gallery[:n_queries] * 1.25
        stored = make_filter(gallery)
        coarse = Coarse(queries, stored)
        maxima, noise = coarse.see(slice(0, 500), k=1)
        query, blocks = torch.ones_like(maxima).nonzero(as_tuple=True)
        query, column, scores = coarse.open(query, blocks)
        query, column, scores = (part[column < 500] for part in (query, column, scores))
        assert len(scores) == n_queries * 500
        mean = gallery.double().mean(0).float() if make_filter is halved else torch.zeros(33)
        true = ((gallery.double() - mean.double())[column] * queries.double()[query]).sum(1)
        off = (scores.double() - true).abs()
        assert bool((off <= noise[query, 0] + coarse.rounding * scores.abs()).all())
        if make_filter is halved:
            assert float((off / (noise[query, 0] + coarse.rounding * scores.abs())).max()) > 0.1  # it says not too much


def rounded_away(signs):
    """A vector whose products with `signs` cancel, while what rounding to bf16 takes from it adds up to D / 256.

    1 + 1/256 lies half-way between two numbers of bf16 and becomes 1; 1 + 3/256 becomes 1 + 4/256.
    """
    return 1 + np.where(signs > 0, 1, 3).astype(np.float32) / 256


@pytest.mark.parametrize("of_gallery", [True, False])
def test_the_noise_covers_roundings_that_all_add_up(of_gallery):
    signs = np.resize([1.0, -1.0], 64).astype(np.float32)
    rough = rounded_away(signs)
    one, other = (signs, rough) if of_gallery else (rough, signs)
    coarse = Coarse(torch.from_numpy(one[None]), halved(torch.from_numpy(np.stack([other, -other]))))  # of mean 0
    _, noise = coarse.see(slice(0, 2), k=1)
    _, column, scores = coarse.open(torch.tensor([0]), torch.tensor([0]))
    off = abs(float(scores[0]) - float(signs @ rough))
    assert column[0] == 0
    assert off == 64 / 256
    assert off <= float(noise) < 1.2 * off


def test_a_row_whose_roundings_hide_it_behind_another_is_found():
    signs = np.resize([1.0, -1.0], 64).astype(np.float32)
    query = np.append(signs, 1.0)[None].astype(np.float32)
    ahead = np.append(rounded_away(-signs), 0.0)  # scores 64 / 256, in bf16 128 / 256
    behind = np.append(rounded_away(signs), 129 / 256)  # scores 65 / 256, in bf16 1 / 256
    gallery = np.stack([ahead, behind, -ahead, -behind]).astype(np.float32)
    check(ExactIndex(gallery, half=True), query, gallery, k=1)
    assert ExactIndex(gallery, half=True).search(query, 1).rows.tolist() == [[1]]


def test_empty_sides_and_more_than_there_is():
    gallery, queries = make(gaussian, n=4, q=2)
    index = ExactIndex(gallery, ["a", "b", "c", "d"])
    assert index.search(queries, 9).rows.shape == (2, 4)
    assert index.search(queries[:0], 3).rows.shape == (0, 3)
    assert index.search(queries, 0).rows.shape == (2, 0)
    assert ExactIndex(gallery[:0]).search(queries, 3).rows.shape == (2, 0)


def test_refuses_what_cannot_be_searched():
    gallery, queries = make(gaussian, n=9000, q=3)
    index = ExactIndex(gallery)
    with pytest.raises(ValueError, match="queries have 7 dimensions, the gallery has 24"):
        index.search(np.zeros((1, 7), np.float32))
    with pytest.raises(ValueError, match="must be a matrix"):
        index.search(queries[0])
    queries[1, 2] = np.nan
    with pytest.raises(ValueError, match="row 1 of the queries is not finite"):
        index.search(queries)
    with pytest.raises(ValueError, match="k must not be negative"):
        index.search(queries, -1)
    with pytest.raises(ValueError, match="allowed must be a mask of the gallery, 9000 times"):
        index.search(queries[:1], allowed=np.array([True]))
    with pytest.raises(ValueError, match="one id per row: 9000 rows"):
        ExactIndex(gallery, ["a"])
    gallery[8500, 0] = np.inf
    for half in (True, False):
        with pytest.raises(ValueError, match="row 8500 of the gallery is not finite"):
            ExactIndex(gallery, half=half)
        with pytest.raises(ValueError, match=r"row 8500 of the gallery \('photo 8500'\) is not finite"):
            ExactIndex(gallery, [f"photo {row}" for row in range(9000)], half=half)


def embeddings_of(matrix, weights="w1", ids=None):
    meta = {"member": "vit", "side": "image", "fingerprints": {"weights": weights, "transform": "t"}}
    names = np.array([f"i{row}" for row in range(len(matrix))] if ids is None else ids, dtype=object)
    return Embeddings(names, matrix, meta)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_saved_and_opened_it_finds_the_same(tmp_path, half, mmap):
    gallery, queries = make(gaussian, n=300, q=5)
    gallery = unit(gallery).astype(np.float32)
    embeddings = embeddings_of(gallery)
    index = ExactIndex.of(embeddings, half=half)
    index.save(tmp_path / "index")
    again = open_index(tmp_path / "index", mmap=mmap, embeddings=embeddings)
    assert again.ids.tolist() == embeddings.ids.tolist()
    assert again.origin == index.origin
    check(again, queries, gallery, k=4)
    assert {path.suffix for path in (tmp_path / "index").iterdir()} == {".npy", ".parquet", ".json"}  # no pickle
    json.loads((tmp_path / "index" / "meta.json").read_text())
    with pytest.raises(FileExistsError, match="never overwritten"):
        index.save(tmp_path / "index")


def test_an_index_saved_with_bf16_opens_where_bf16_is_slow(tmp_path, monkeypatch):
    gallery, queries = make(gaussian, n=300, q=5)
    ExactIndex(gallery, half=True).save(tmp_path / "index")
    monkeypatch.setattr(exact, "fast_bf16", lambda device: False)
    again = open_index(tmp_path / "index")
    assert again.filter.vectors.dtype == torch.float32
    check(again, queries, gallery, k=4)


def test_an_empty_index_is_saved_too(tmp_path):
    ExactIndex(np.zeros((0, 3), np.float32)).save(tmp_path / "index")
    assert open_index(tmp_path / "index").search(np.ones((2, 3), np.float32)).rows.shape == (2, 0)


def test_a_mapped_gallery_is_not_copied(tmp_path):
    gallery, _ = make(gaussian, n=300, q=1)
    np.save(tmp_path / "matrix.npy", gallery)
    mapped = np.load(tmp_path / "matrix.npy", mmap_mode="c")
    assert np.shares_memory(ExactIndex(mapped).matrix.numpy(), mapped)
    ExactIndex(mapped).save(tmp_path / "index")
    opened = ExactIndex.open(tmp_path / "index")
    assert any(str(tmp_path / "index" / "matrix.npy") in line for line in open("/proc/self/maps"))  # noqa: SIM115
    assert len(opened) == 300


def test_an_index_refuses_embeddings_that_did_not_make_it(tmp_path):
    gallery = unit(make(gaussian, n=20, q=1)[0]).astype(np.float32)
    ExactIndex.of(embeddings_of(gallery)).save(tmp_path / "index")
    with pytest.raises(OtherOriginError, match=r"weights w1, .* have weights w2"):
        open_index(tmp_path / "index", embeddings=embeddings_of(gallery, weights="w2"))
    with pytest.raises(OtherOriginError, match="with ids "):
        open_index(tmp_path / "index", embeddings=embeddings_of(gallery, ids=[f"j{row}" for row in range(20)]))
    (tmp_path / "index" / "MANIFEST.json").unlink()
    with pytest.raises(BrokenArtifactError, match="never finished"):
        open_index(tmp_path / "index")
