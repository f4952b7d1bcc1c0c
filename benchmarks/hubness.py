"""Dual softmax and Sinkhorn over 17.6k x 17.6k scores, down to the top 10 of every query: streamed against dense NumPy.

The peer holds one fp32 matrix and does everything in it: exponentials block by block, Sinkhorn as scalings of the
kernel (its row maxima taken out, so that fp32 does not run out), the top 10 by argpartition. It multiplies with as many
threads as we do. Where the two disagree, the formulas in fp64 decide, evaluated here from the embeddings alone (for
Sinkhorn with exponentials in fp32).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.retrieval.normalise import Setting, normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores
from xmodal_kedro.retrieval.scores.precision import fast_bf16

DIM = 512
TEMPERATURE = 0.02
ITERATIONS = 10
TOP = 10
BLOCK = 256  # rows of the peer's matrix at a time, so that they stay in the cache
NEAR = 1e-3  # relative difference in fp64 below which fp32 may take two scores for each other

Given = tuple[np.ndarray, np.ndarray]
Potential = Callable[[Given, np.ndarray], np.ndarray]


def run(options: Options) -> list[dict[str, Any]]:
    """Both normalisations."""
    n = 3000 if options.quick else 17_600
    inputs, small = partial(embedded, n), partial(embedded, 600)
    check = partial(agreement, inputs=inputs)
    size = f"{n} x {n}, D={DIM}, temperature {TEMPERATURE}, top {TOP}"
    quick = options.quick
    return [
        compete(
            f"dual softmax, {size}",
            inputs,
            {"ours": ours_dual_softmax, "numpy": numpy_dual_softmax},
            partial(check, potential=dual_softmax_potential),
            ("1 fp32 + 1 bf16 product by torch", partial(products, 1)),
            {"numpy": Goal() if quick else Goal(ratio=2.0, memory=0.2)},
            small=small,
            bf16=True,
        ),
        compete(
            f"Sinkhorn, {ITERATIONS} iterations, {size}",
            inputs,
            {"ours": ours_sinkhorn, "numpy": numpy_sinkhorn},
            partial(check, potential=sinkhorn_potential),
            (f"{ITERATIONS} fp32 + 1 bf16 products by torch", partial(products, ITERATIONS)),
            {"numpy": Goal() if quick else Goal(memory=0.2)},
            small=small,
            repetitions=1,  # its time is reported, and has no goal
        ),
    ]


def embedded(n: int) -> Given:
    """Captions and their images [n, DIM], unit length, with a direction that all share, so that there are hubs."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(DIM, dtype=np.float32)
    images = rng.standard_normal((n, DIM), dtype=np.float32)
    texts = images + 3.0 * rng.standard_normal((n, DIM), dtype=np.float32) + shared
    images += 0.5 * shared
    for side in (texts, images):
        side /= np.linalg.norm(side, axis=1, keepdims=True)
    return texts, images


def ours_dual_softmax(given: Given) -> np.ndarray:
    """The top items [N, TOP]."""
    return _ours(given, "dual_softmax_transductive")


def ours_sinkhorn(given: Given) -> np.ndarray:
    """The same of Sinkhorn."""
    return _ours(given, "sinkhorn_transductive")


def _ours(given: Given, name: str) -> np.ndarray:
    source = normalised(EmbeddingScores(*given), name, Setting(TEMPERATURE, iterations=ITERATIONS))
    return rank(source, None, TOP).top_rows


def numpy_dual_softmax(given: Given) -> np.ndarray:
    """Score times its softmax over the queries, in one dense matrix."""
    texts, images = given
    scores = texts @ images.T
    high, total = scores.max(0), np.zeros(len(images), dtype=np.float64)
    for block in _blocks(scores):
        total += _exponentials(block, high).sum(0)
    inverse = (1.0 / total).astype(np.float32)
    for block in _blocks(scores):
        prior = _exponentials(block, high)
        prior *= inverse
        block *= prior
    return _top(scores)


def numpy_sinkhorn(given: Given) -> np.ndarray:
    """Rows that sum to 1 and columns that sum to N / M in turn, by scaling the kernel."""
    texts, images = given
    kernel = texts @ images.T
    for block in _blocks(kernel):
        block[:] = _exponentials(block, block.max(1, keepdims=True))
    columns = np.ones(len(images), dtype=np.float32)
    for _ in range(ITERATIONS):
        rows = 1.0 / (kernel @ columns)
        columns = np.float32(len(texts) / len(images)) / (rows @ kernel)
    for block in _blocks(kernel):
        block *= columns  # the scaling of a row does not change its order
    return _top(kernel)


def _blocks(matrix: np.ndarray) -> list[np.ndarray]:
    return [matrix[start : start + BLOCK] for start in range(0, len(matrix), BLOCK)]


def _exponentials(scores: np.ndarray, high: np.ndarray) -> np.ndarray:
    found = scores - high
    found *= np.float32(1.0 / TEMPERATURE)
    return np.exp(found, out=found)


def _top(scores: np.ndarray) -> np.ndarray:
    found = []
    for block in _blocks(scores):
        best = np.argpartition(block, -TOP, axis=1)[:, -TOP:]
        order = np.argsort(-np.take_along_axis(block, best, 1), axis=1)
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def agreement(outputs: dict[str, Any], inputs: Callable[[], Given], potential: Potential) -> dict[str, str]:
    """Equal ids, but for places where the two ids' scores in fp64 are the same to fp32."""
    ours, peer = outputs["ours"], outputs["numpy"]
    row, place = np.nonzero(ours != peer)
    worst = 0.0
    if len(row):
        given = inputs()
        items = np.stack([ids[row, place] for ids in (ours, peer)])
        scores = np.stack([_exact(given, row, one) for one in items])
        logs = scores / TEMPERATURE - potential(given, np.unique(items))[items]
        if potential is dual_softmax_potential:  # the score times the prior; an item of the top has a positive score
            logs += np.log(scores)
        worst = float(np.abs(np.expm1(logs[0] - logs[1])).max())
    assert worst <= NEAR, f"an item of the top {TOP} differs by {worst:.1e} of its score"
    flipped = f", {len(row)} flipped by fp32 (at most {worst:.0e} apart in fp64)" if len(row) else ""
    return {"numpy": f"{ours.size - len(row)} of {ours.size} places equal{flipped}"}


def dual_softmax_potential(given: Given, columns: np.ndarray) -> np.ndarray:
    """For some columns, the log of the sum over the queries of exp(score / temperature), [M] fp64; others are 0."""
    texts, images = given
    total = np.zeros(len(images))
    for some in np.array_split(columns, 1 + len(columns) // 64):
        exponents = _wide(texts, images[some]) / TEMPERATURE
        high = exponents.max(0)
        total[some] = high + np.log(np.exp(exponents - high).sum(0))
    return total


def sinkhorn_potential(given: Given, columns: np.ndarray) -> np.ndarray:
    """What is taken from each column's exponents in the end, [M] fp64.

    Exponentials are fp32 and sums fp64: an error of 1e-7 in a score moves its exponent by 1e-5, far less than what
    counts as near.
    """
    texts, images = given
    taken = np.zeros(len(images))
    for _ in range(ITERATIONS):
        mass = np.zeros(len(images))
        for start in range(0, len(texts), BLOCK):
            kernel = texts[start : start + BLOCK] @ images.T
            kernel *= np.float32(1.0 / TEMPERATURE)
            kernel -= taken.astype(np.float32)
            kernel -= kernel.max(1, keepdims=True)
            np.exp(kernel, out=kernel)
            mass += (1.0 / kernel.sum(1, dtype=np.float64)) @ kernel
        taken += np.log(mass) + np.log(len(images) / len(texts))
    return taken


def _wide(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.float64) @ right.T.astype(np.float64)


def _exact(given: Given, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Inner products [K] in fp64."""
    return np.einsum("kd,kd->k", given[0][rows].astype(np.float64), given[1][items].astype(np.float64))


def products(times: int, given: Given) -> None:
    """So many fp32 products, and one of bf16 where that is fast, in blocks that are thrown away."""
    texts, images = (torch.from_numpy(side) for side in given)
    last = torch.bfloat16 if fast_bf16(texts.device) else torch.float32
    for dtype in [torch.float32] * times + [last]:
        left, right = texts.to(dtype), images.to(dtype)
        room = torch.empty(512, len(right), dtype=dtype)
        for start in range(0, len(left), 512):
            part = left[start : start + 512]
            torch.mm(part, right.T, out=room[: len(part)])
