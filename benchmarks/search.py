"""Search: the exact best 10 of a large gallery, beside faiss Flat and usearch; and what approximate indices miss.

The gallery is synthetic: unit vectors around 4 000 centres that share a direction, as embeddings of photos do. The
limit of a batch is the product in fp32, that of single queries is reading the gallery in fp32 once for each. A filter
in bf16 can be faster than both, where the processor multiplies bf16 faster.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.retrieval.search import ExactIndex, FaissIndex, Found, measure_recall

K = 10
DIMENSIONS = 512
CENTRES = 4000
SINGLE = 20  # queries that are asked one by one
NEAR = 1e-6  # scores that fp32 may confuse


class Inputs(NamedTuple):
    """A gallery as each side wants it, and queries [Q, D]."""

    gallery: np.ndarray
    queries: np.ndarray
    ours: ExactIndex
    faiss: Any


def run(options: Options) -> list[dict[str, Any]]:
    """A batch and single queries exactly, and a batch approximately."""
    rows = 20_000 if options.quick else 200_000
    small = partial(exact_inputs, 4096, 8)
    exact = {"ours": ours, "faiss Flat": faiss_flat, "usearch exact": usearch_exact}
    single = {name: partial(one_by_one, side) for name, side in exact.items()}
    # set for the full size: where the gallery fits the caches, other things count
    goals = {} if options.quick else {"faiss Flat": Goal(ratio=1.4), "usearch exact": Goal(ratio=1.4)}
    return [
        compete(
            f"exact top-{K} of {rows} x {DIMENSIONS}, batch 256",
            partial(exact_inputs, rows, 256),
            exact,
            partial(agree, rows, 256),
            ("product in fp32", product),
            goals,
            small=small,
            bf16=True,
        ),
        compete(
            f"exact top-{K} of {rows} x {DIMENSIONS}, {SINGLE} queries one by one",
            partial(exact_inputs, rows, SINGLE),
            single,
            partial(agree, rows, SINGLE),
            ("reading the gallery in fp32", read_for_each),
            {},
            small=small,
            memory=False,
        ),
        compete(
            f"approximate top-{K} of {rows} x {DIMENSIONS}, batch 256 (reported, no contest)",
            partial(approximate_inputs, rows, 256),
            {"ours": ours, "faiss IVF": faiss_ivf, "faiss HNSW": faiss_hnsw},
            partial(recalls, rows, 256),
            ("product in fp32", product),
            {},
            memory=False,
            repetitions=3,
        ),
    ]


@cache
def vectors(rows: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Gallery [rows, D] and queries [queries, D], unit fp32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CENTRES, DIMENSIONS, generator=generator) + torch.randn(DIMENSIONS, generator=generator)
    which = torch.randint(0, CENTRES, (rows + queries,), generator=generator)
    found = centres[which] + torch.randn(rows + queries, DIMENSIONS, generator=generator)
    found = torch.nn.functional.normalize(found)
    return found[:rows].numpy(), found[rows:].numpy()


def exact_inputs(rows: int, queries: int) -> Inputs:
    """Galleries that are ready to be searched exactly."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    gallery, asked = vectors(rows, queries)
    flat = faiss.IndexFlatIP(DIMENSIONS)
    flat.add(gallery)
    return Inputs(gallery, asked, ExactIndex(gallery), flat)


def approximate_inputs(rows: int, queries: int) -> Inputs:
    """Galleries that are ready to be searched approximately, by the default settings of the project."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    gallery, asked = vectors(rows, queries)
    built = {kind: FaissIndex(gallery, config=IndexConfig(kind=kind)) for kind in ("ivf", "hnsw")}
    return Inputs(gallery, asked, ExactIndex(gallery), built)


def ours(given: Inputs) -> Found:
    """The project's exact index."""
    return given.ours.search(given.queries, K)


def faiss_flat(given: Inputs) -> Found:
    """faiss's exact index."""
    return Found(*given.faiss.search(given.queries, K))


def usearch_exact(given: Inputs) -> Found:
    """The exact search of usearch, which needs no index."""
    from usearch.index import MetricKind, search

    found = search(given.gallery, given.queries, K, MetricKind.IP, exact=True, threads=torch.get_num_threads())
    shape = len(given.queries), K
    return Found(1.0 - found.distances.reshape(shape), found.keys.reshape(shape).astype(np.int64))


def one_by_one(side: Any, given: Inputs) -> Found:
    """Any of the sides with one query at a time."""
    found = [side(given._replace(queries=given.queries[i : i + 1])) for i in range(len(given.queries))]
    return Found(np.concatenate([one.scores for one in found]), np.concatenate([one.rows for one in found]))


def faiss_ivf(given: Inputs) -> Found:
    """Inverted lists."""
    return given.faiss["ivf"].search(given.queries, K)


def faiss_hnsw(given: Inputs) -> Found:
    """A graph of neighbours."""
    return given.faiss["hnsw"].search(given.queries, K)


def product(given: Inputs) -> None:
    """All scores in fp32, in pieces of which none is kept."""
    queries, gallery = torch.from_numpy(given.queries), torch.from_numpy(given.gallery)
    for part in gallery.split(4096):
        queries @ part.T


def read_for_each(given: Inputs) -> None:
    """The bytes of the gallery, once per query."""
    gallery = torch.from_numpy(given.gallery)
    for _ in given.queries:
        gallery.sum()


def agree(rows: int, queries: int, found: dict[str, Found]) -> dict[str, str]:
    """Ids identical, or flipped between scores that fp64 shows to be nearer than fp32 tells apart."""
    gallery, asked = vectors(rows, queries)
    said = {}
    for peer in [name for name in found if name != "ours"]:
        query, place = np.nonzero(found[peer].rows != found["ours"].rows)
        left, right = (
            np.einsum("nd,nd->n", asked[query].astype(np.float64), gallery[found[side].rows[query, place]])
            for side in ("ours", peer)
        )
        gap = float(np.abs(left - right).max(initial=0.0))
        assert gap <= NEAR, f"{peer} finds rows whose scores differ by {gap:.2g} from ours"
        assert not (right > left).all() or not len(left), f"{peer} is right where we are wrong"
        flips = (
            f"{len(query)} of {found[peer].rows.size} flipped by fp32 (gap {gap:.0e})" if len(query) else "identical"
        )
        said[peer] = f"ids {flips}"
    return said


def recalls(rows: int, queries: int, found: dict[str, Found]) -> dict[str, str]:
    """Recall against exact search, with its interval."""
    gallery, asked = vectors(rows, queries)
    exact = ExactIndex(gallery)
    said = {}
    for peer in [name for name in found if name != "ours"]:
        recall = measure_recall(_Found(exact.ids, found[peer]), exact, asked, K)
        said[peer] = f"recall@{K} {recall.value:.4f} [{recall.low:.4f}, {recall.high:.4f}], n = {recall.queries}"
    return said


class _Found:
    """An index that has been asked already."""

    def __init__(self, ids: np.ndarray, found: Found) -> None:
        self.ids, self.found = ids, found

    def search(self, queries: np.ndarray, k: int) -> Found:
        """What was found, whatever is asked."""
        return self.found
