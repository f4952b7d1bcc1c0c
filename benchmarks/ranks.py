"""Recall of both directions from embeddings, many-to-many, against the metrics of four peers.

The embeddings are synthetic: images are random unit vectors, texts are their images plus noise, and some texts are
right for two images. The noise is chosen so that no recall at 1 is 0 or 1 (recalls are printed); a second case with
more of it, where more scores lie near each other, is reported without goals. Embeddings of trained members would have
to be shipped, or trained first.

LAVIS cannot be installed beside today's libraries: its loop (an argsort of each row, the best place of any right item)
is stated again here. The other peers are called as they are: CLIP_benchmark's metric with the batch of its command
line, 64; sentence-transformers' evaluator without metrics beyond the first ten; open_clip's metrics on one-to-one
pairs, since they know no other.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.retrieval.metrics import per_query
from xmodal_kedro.retrieval.rank import rank_both
from xmodal_kedro.retrieval.scores import EmbeddingScores

KS = (1, 5, 10)
DIM = 512
NOISE, MORE_NOISE = 5.0, 6.0  # length of what separates a text from its image, in lengths of the image
SHARED = 0.04  # of the texts are right for a second image, too
TILE = (512, 2048)  # of the matrix product that bounds all sides
LIMIT = "fp32 matrix product (the faster of torch's and numpy's)"

Recalls = dict[str, float]
"""`i2t@1`, `t2i@10` and so on: the share of queries with a right item among the first k."""


class Inputs(NamedTuple):
    """Unit vectors of images [N, D] and texts [M, D], and what is right: [N, M]."""

    images: Tensor
    texts: Tensor
    relevance: sparse.csr_array


def planted(n: int, per_image: int, shared: float, device: str, seed: int = 0, noise: float = NOISE) -> Inputs:
    """N images with texts of their own, of which a share was written for the mean of two images."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((n, DIM), dtype=np.float32)
    first = np.repeat(np.arange(n), per_image)
    second = np.where(rng.random(len(first)) < shared, rng.integers(0, n, len(first)), first)
    texts = (images[first] + images[second]) / 2
    texts *= (np.linalg.norm(images[first], axis=1) / np.linalg.norm(texts, axis=1))[:, None]
    texts += noise * rng.standard_normal(texts.shape, dtype=np.float32)
    for vectors in (images, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, columns = np.concatenate([first, second]), np.tile(np.arange(len(first)), 2)
    relevance = sparse.csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(n, len(first)))
    return Inputs(torch.from_numpy(images).to(device), torch.from_numpy(texts).to(device), relevance)


def ours(given: Inputs) -> Recalls:
    """Ranks of all right items in both directions from one pass."""
    source = EmbeddingScores(given.images, given.texts, device=given.images.device)
    rankings = rank_both(source, given.relevance, 0)
    return {
        f"{direction}@{k}": float(per_query(f"recall_at_{k}", ranking).mean())
        for direction, ranking in zip(("i2t", "t2i"), rankings, strict=True)
        for k in KS
    }


def clip_benchmark(given: Inputs) -> Recalls:
    """The second half of `zeroshot_retrieval.evaluate`, which begins with encoding."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = given.texts @ given.images.T
    positive = torch.from_numpy(given.relevance.T.toarray()).to(scores.device)
    found = {}
    for direction, table, truth in (("t2i", scores, positive), ("i2t", scores.T, positive.T)):
        for k in KS:
            recall = batchify(recall_at_k, table, truth, 64, scores.device, k=k)
            found[f"{direction}@{k}"] = float((recall > 0).float().mean())
    return found


def sentence_transformers(given: Inputs) -> Recalls:
    """`InformationRetrievalEvaluator.compute_all_metrics` on given embeddings, once per direction."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import dot_score

    found = {}
    sides = {"i2t": (given.images, given.texts, given.relevance), "t2i": (given.texts, given.images, given.relevance.T)}
    for direction, (queries, corpus, relevance) in sides.items():
        truth = sparse.csr_array(relevance)
        evaluator = InformationRetrievalEvaluator(
            queries={str(row): "" for row in range(len(queries))},
            corpus={str(row): "" for row in range(len(corpus))},
            relevant_docs={
                str(row): {str(item) for item in truth.indices[truth.indptr[row] : truth.indptr[row + 1]]}
                for row in range(len(queries))
            },
            accuracy_at_k=list(KS),
            precision_recall_at_k=[1],
            mrr_at_k=[1],
            ndcg_at_k=[1],
            map_at_k=[1],
            score_functions={"dot": dot_score},
        )
        scores = evaluator.compute_all_metrics(_Given(queries), corpus_embeddings=corpus)
        found |= {f"{direction}@{k}": float(scores["dot"]["accuracy@k"][k]) for k in KS}
    return found


class _Given:
    """What the evaluator takes for a model: its queries are encoded already."""

    def __init__(self, queries: Tensor) -> None:
        self.queries = queries

    def encode_query(self, sentences: Any, **_: Any) -> Tensor:
        return self.queries


def lavis(given: Inputs) -> Recalls:
    """LAVIS' `_report_metrics`, stated again: sort each row, look where its right items stand, keep the best place."""
    scores = (given.images @ given.texts.T).cpu().numpy()
    found = {}
    for direction, table, relevance in (("i2t", scores, given.relevance), ("t2i", scores.T, given.relevance.T)):
        truth = sparse.csr_array(relevance)
        ranks = np.zeros(len(table))
        for row, values in enumerate(table):
            order = np.argsort(values)[::-1]
            right = truth.indices[truth.indptr[row] : truth.indptr[row + 1]]
            ranks[row] = min(np.where(order == item)[0][0] for item in right)
        found |= {f"{direction}@{k}": float((ranks < k).mean()) for k in KS}
    return found


def open_clip(given: Inputs) -> Recalls:
    """`get_clip_metrics` of its training loop."""
    from open_clip_train.train import get_clip_metrics

    metrics = get_clip_metrics(given.images, given.texts, torch.tensor(1.0, device=given.images.device))
    names = {"i2t": "image_to_text", "t2i": "text_to_image"}
    return {f"{short}@{k}": float(metrics[f"{name}_R@{k}"]) for short, name in names.items() for k in KS}


def product(given: Inputs) -> float:
    """The fp32 product alone, by what the first call with this device found the faster: torch or numpy."""
    return _faster(given.images.device.type)(given)


@cache
def _faster(device: str) -> Callable[[Inputs], float]:
    """Of torch's and numpy's product, which bring different libraries along; tried on 2000 x 10000."""
    if device != "cpu":
        return _torch_product
    given, seconds = planted(2000, 5, 0.0, device), {}
    for run in (_torch_product, _numpy_product):
        run(given)
        seconds[run] = min(timeit.repeat(partial(run, given), number=1, repeat=5))
    return min(seconds, key=lambda run: seconds[run])


def _numpy_product(given: Inputs) -> float:
    """As `_torch_product`."""
    height, width = TILE
    images, texts = given.images.numpy(), given.texts.numpy()
    buffer = np.empty(height * width, dtype=np.float32)
    for top in range(0, len(images), height):
        left = images[top : top + height]
        for start in range(0, len(texts), width):
            right = texts[start : start + width]
            np.matmul(left, right.T, out=buffer[: len(left) * len(right)].reshape(len(left), len(right)))
    return float(buffer[0])


def _torch_product(given: Inputs) -> float:
    """In tiles into one buffer, so that no memory is written twice."""
    height, width = TILE if given.images.device.type == "cpu" else (8192, 8192)
    buffer = given.images.new_empty(height, width)
    for left in given.images.split(height):
        for right in given.texts.split(width):
            torch.mm(left, right.T, out=buffer.flatten()[: len(left) * len(right)].view(len(left), len(right)))
    return float(buffer[0, 0])


def equal(outputs: dict[str, Recalls], sizes: dict[str, int]) -> dict[str, str]:
    """Recalls must be equal; a peer's fp32 scores may tie or swap where ours are exact, in two queries at most."""
    mine = outputs["ours"]
    said = {}
    for peer, theirs in outputs.items():
        if peer == "ours":
            continue
        off = {name: abs(mine[name] - theirs[name]) * sizes[name.split("@")[0]] for name in mine}
        worst = max(off, key=lambda name: off[name])
        assert off[worst] < 2.5, f"{peer}: {worst} is {theirs[worst]}, ours {mine[worst]}"
        said[peer] = (
            "recalls equal" if off[worst] < 0.5 else f"recalls equal but for {off[worst]:.0f} queries of {worst}"
        )
    print("  recalls: " + ", ".join(f"{name} {value:.3f}" for name, value in mine.items()))
    return said


def run(options: Options) -> list[dict[str, Any]]:
    """Three cases: many-to-many against three peers, the same with harder data, one-to-one against the fourth."""
    n, single = (500, 1000) if options.quick else (5000, 5000)
    megabytes = 6 * n * DIM * 4 / 2**20
    goals = {
        "CLIP_benchmark": Goal(30.0),
        "sentence-transformers": Goal(5.0),
        "LAVIS (stated again)": Goal(6.0),
    }
    workload = (
        f"R@{{1,5,10}} both ways, {n} images x {5 * n} texts, D={DIM}, {SHARED:.0%} of the texts right for two images"
    )
    sides = {
        "ours": ours,
        "CLIP_benchmark": clip_benchmark,
        "sentence-transformers": sentence_transformers,
        "LAVIS (stated again)": lavis,
    }
    many = compete(
        workload,
        partial(planted, n, 5, SHARED, options.device),
        sides,
        partial(equal, sizes={"i2t": n, "t2i": 5 * n}),
        (LIMIT, product),
        {} if options.quick else goals,
        share=None if options.quick else 0.85,
        peak_goal_mb=None if options.quick else 0.3 * megabytes,
        small=partial(planted, 64, 5, SHARED, options.device),
        memory=not options.quick,
        repetitions=3 if options.quick else 5,
        bf16=True,
    )
    harder = compete(
        f"{workload}, texts with noise {MORE_NOISE} in place of {NOISE}",
        partial(planted, n, 5, SHARED, options.device, noise=MORE_NOISE),
        sides,
        partial(equal, sizes={"i2t": n, "t2i": 5 * n}),
        (LIMIT, product),
        {},
        small=partial(planted, 64, 5, SHARED, options.device),
        memory=not options.quick,
        repetitions=3,
    )
    one = compete(
        f"R@{{1,5,10}} both ways, {single} images x {single} texts, one-to-one, D={DIM}",
        partial(planted, single, 1, 0.0, options.device),
        {"ours": ours, "open_clip": open_clip},
        partial(equal, sizes={"i2t": single, "t2i": single}),
        (LIMIT, product),
        {} if options.quick else {"open_clip": Goal(2.0)},
        small=partial(planted, 64, 1, 0.0, options.device),
        memory=not options.quick,
        repetitions=3 if options.quick else 5,
        bf16=True,
    )
    return [many, harder, one]
