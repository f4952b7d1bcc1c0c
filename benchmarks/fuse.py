"""Contest `fuse`: four members, each divided by the norm of its rows, summed, and the best ten of every row.

The peer is the published form, dense: a product per member, its rows divided by their norms, a weighted sum, and the
best ten by partial selection; it adds up in place. A second peer sorts whole rows,
as published. Ours computes the norms in closed form and one product of long vectors in low precision, of which fp32 and
fp64 decide what is in doubt.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, WeightedScores

WEIGHTS = (0.4, 0.3, 0.2, 0.1)
DIMENSION, TOP, SHARED = 512, 10, 64

Member = tuple[np.ndarray, np.ndarray]


def members(rows: int) -> list[Member]:
    """Texts and images [rows, D] of unit length: what the members agree on, and what each adds."""
    shared = np.random.default_rng(0)
    meaning = shared.standard_normal((rows, SHARED), dtype=np.float32)
    picture = meaning + 0.7 * shared.standard_normal((rows, SHARED), dtype=np.float32)
    found = []
    for seed in range(len(WEIGHTS)):
        own = np.random.default_rng(1 + seed)
        into = own.standard_normal((SHARED, DIMENSION), dtype=np.float32)
        sides = []
        for side in (meaning, picture):
            vectors = (side + 0.7 * own.standard_normal(side.shape, dtype=np.float32)) @ into
            sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        found.append((sides[0], sides[1]))
    return found


def ours(given: list[Member]) -> np.ndarray:
    """The best ten of every row."""
    sources = [normalised(EmbeddingScores(texts, images), "row_l2") for texts, images in given]
    return rank(WeightedScores(sources, WEIGHTS), None, TOP).top_rows


def dense(given: list[Member]) -> np.ndarray:
    """Best ten by partial selection of the dense sum, then in order."""
    mixed = _dense_sum(given)
    best = np.argpartition(mixed, -TOP, axis=1)[:, -TOP:]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(mixed, best, 1), axis=1, kind="stable"), 1)


def dense_sorted(given: list[Member]) -> np.ndarray:
    """Best ten by sorting every row of the dense sum."""
    return np.argsort(-_dense_sum(given), axis=1)[:, :TOP]


def one_product(given: list[Member]) -> torch.Tensor | None:
    """The product of the long vectors in bf16, block by block, and nothing else."""
    left, right = (torch.from_numpy(np.concatenate(side, axis=1)).bfloat16() for side in zip(*given, strict=True))
    last = None
    for start in range(0, len(left), 2048):
        last = left[start : start + 2048] @ right.T
    return last


def agree(outputs: dict[str, Any], inputs: Any) -> dict[str, str]:
    """The same ten in the same order, but for items whose fp64 scores differ by less than fp32 can tell."""
    given, found = inputs(), outputs["ours"]
    told = {}
    for name, other in outputs.items():
        if name == "ours":
            continue
        row, place = np.nonzero(found != other)
        ours_are, theirs_are = (_exact(given, row, best[row, place]) for best in (found, other))
        apart = float(np.abs(ours_are - theirs_are).max(initial=0.0))
        assert apart < 1e-6, f"{name} ranks items whose scores differ by {apart} in another order"
        assert (ours_are >= theirs_are - 1e-12).mean() >= 0.4 if len(row) else True
        told[name] = f"{len(row)} of {found.size} places differ, by fp32 rounding ({apart:.0e} of the score at most)"
    return told


def run(options: Options) -> list[dict[str, Any]]:
    """One case, with both dense peers."""
    rows = 3000 if options.quick else 17_600
    inputs = partial(members, rows)
    return [
        compete(
            f"{len(WEIGHTS)} members, {rows} x {rows}, D={DIMENSION}, row-L2, weighted sum, top {TOP}",
            inputs,
            {"ours": ours, "dense numpy": dense, "dense numpy, full sort": dense_sorted},
            partial(agree, inputs=inputs),
            ("one product of 2048 dimensions in bf16", one_product),
            {"dense numpy": Goal() if options.quick else Goal(ratio=3.0, memory=0.2)},
            small=partial(members, 300),
            bf16=True,
        )
    ]


def _dense_sum(given: list[Member]) -> np.ndarray:
    total: np.ndarray | None = None
    for (texts, images), weight in zip(given, WEIGHTS, strict=True):
        scores = texts @ images.T
        scores *= weight / np.linalg.norm(scores, axis=1, keepdims=True)
        total = scores if total is None else np.add(total, scores, out=total)
    assert total is not None
    return total


def _exact(given: list[Member], rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Scores [K] in fp64, from the formula."""
    total = np.zeros(len(rows))
    for (texts, images), weight in zip(given, WEIGHTS, strict=True):
        wide = images.astype(np.float64)
        gram = wide.T @ wide
        own = texts[rows].astype(np.float64)
        norm = np.sqrt(np.maximum(((own @ gram) * own).sum(1), 0.0))
        total += weight * (own * wide[items]).sum(1) / norm
    return total
