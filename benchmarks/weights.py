"""Contest `weights`: 200 mixtures of four members on the validation rows of traffic, against summing matrices again.

The rows, their groups and what is right for whom are real where `../shared/data/traffic` is there, and drawn with the
same sizes where it is not; the members are synthetic: embeddings that share what makes a picture hard and differ in
what each member adds. Texts that are equal have equal embeddings, as with any encoder, and ours judges a text that is
asked by several rows once; the table's workload says how many there are. Both sides are given what they
need before the clock runs: the peer its row-normalised matrices, ours the candidates. The second case times everything,
from embeddings to the best weights.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.retrieval.fuse import DevPart
from xmodal_kedro.retrieval.fuse.trials import Trials
from xmodal_kedro.retrieval.metrics import per_query
from xmodal_kedro.retrieval.normalise import normalised
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import EmbeddingScores, WeightedScores

TRAFFIC = Path(__file__).parents[2] / "shared" / "data" / "traffic" / "val.parquet"
MEMBERS, DIMENSION, TRIALS, TOP = 4, 512, 200, 10
METRIC = "map_at_10"


class Prepared(NamedTuple):
    """What both sides are given."""

    weights: np.ndarray  # [T, S]
    embeddings: list[tuple[np.ndarray, np.ndarray]]
    relevance: np.ndarray  # [N, N] bool
    trials: Trials | None
    dense: np.ndarray  # [S, N, N] fp32, each divided by the norms of its rows


def prepare(rows: int, trials: int, ready: bool) -> Prepared:
    """Embeddings of four members over `rows` rows of traffic, and the mixtures to try."""
    rng = np.random.default_rng(0)
    key = _phrases(rows, rng)
    embeddings = [_member(key, np.random.default_rng(0), np.random.default_rng(1 + s)) for s in range(MEMBERS)]
    relevance = key[:, None] == key[None, :]
    found = None
    dense = np.zeros((MEMBERS, 0, 0), np.float32)
    if ready:
        found = _trials(embeddings, relevance)
        dense = np.stack([_row_normalised(texts @ images.T) for texts, images in embeddings])
    return Prepared(_mixtures(trials), embeddings, relevance, found, dense)


def ours(given: Prepared) -> tuple[np.ndarray, int]:
    """Values of all mixtures, and the best one."""
    assert given.trials is not None
    values = given.trials.judge(given.weights).value
    return values, int(values.argmax())


def dense_sum(given: Prepared) -> tuple[np.ndarray, int]:
    """For each mixture: the matrices summed again, the best ten by partial selection, and the metric, vectorised."""
    n = len(given.relevance)
    stack = given.dense.reshape(MEMBERS, -1)
    within = np.minimum(given.relevance.sum(1), TOP)
    values = np.empty(len(given.weights))
    for number, weights in enumerate(given.weights.astype(np.float32)):
        mixed = (weights @ stack).reshape(n, n)
        best = np.argpartition(mixed, -TOP, axis=1)[:, -TOP:]
        order = np.argsort(-np.take_along_axis(mixed, best, 1), axis=1)
        hits = np.take_along_axis(given.relevance, np.take_along_axis(best, order, 1), 1)
        precision = hits.cumsum(1) / np.arange(1, TOP + 1)
        values[number] = ((precision * hits).sum(1) / within).mean()
    return values, int(values.argmax())


def ours_from_embeddings(given: Prepared) -> tuple[np.ndarray, int]:
    """Candidates and comparisons first."""
    values = _trials(given.embeddings, given.relevance).judge(given.weights).value
    return values, int(values.argmax())


def dense_from_embeddings(given: Prepared) -> tuple[np.ndarray, int]:
    """Matrix products and norms first."""
    dense = np.stack([_row_normalised(texts @ images.T) for texts, images in given.embeddings])
    return dense_sum(given._replace(dense=dense))


def differences(given: Prepared) -> Any:
    """The products of the weights with the differences that they decide, a few trials at a time, and nothing else."""
    assert given.trials is not None
    weights = torch.from_numpy(given.weights).float()
    return [(part @ values).shape for part in weights.split(8) for _, _, values in given.trials._counts.blocks]


def products(given: Prepared) -> Any:
    """The members' matrix products."""
    return [texts @ images.T for texts, images in given.embeddings]


def agree(outputs: dict[str, Any], given: Any) -> dict[str, str]:
    """The same optimum on the dense check in full precision, and values that differ by fp32 ties at most."""
    values, best = outputs["ours"]
    prepared = given()
    judged = {}
    for name, (found, winner) in outputs.items():
        apart = float(np.abs(found - values).max())
        assert apart < 2e-4, f"{name} differs by {apart}"
        judged[name] = _in_full(prepared, winner)
        assert judged[name] <= judged["ours"] + 1e-12, f"{name} found a better optimum: {judged}"
    assert abs(judged["ours"] - values[best]) < 1e-9, "ours is not what the full gallery gives"
    return {
        name: f"same optimum on the dense check ({judged['ours']:.6f}), values within {np.abs(v - values).max():.0e}"
        for name, (v, _) in outputs.items()
        if name != "ours"
    }


def run(options: Options) -> list[dict[str, Any]]:
    """Trials alone, with the goal, and everything."""
    rows, trials = (400, 40) if options.quick else (1464, TRIALS)
    ready, raw = partial(prepare, rows, trials, True), partial(prepare, rows, trials, False)
    small = partial(prepare, 60, 4, True)
    where = "traffic val" if TRAFFIC.exists() else "drawn in the sizes of traffic val"
    texts = len(np.unique(_phrases(rows, np.random.default_rng(0))))  # ours judges each once
    what = f"{trials} trials, {MEMBERS} members, {rows} x {rows} ({where}; {texts} distinct texts), {METRIC}"
    return [
        compete(
            f"{what}: trials",
            ready,
            {"ours": ours, "dense re-sum": dense_sum},
            partial(agree, given=ready),
            ("products with the differences", differences),
            {"dense re-sum": Goal(ratio=None if options.quick else 50.0)},
            small=small,
        ),
        compete(
            f"{what}: from embeddings to the best weights",
            raw,
            {"ours": ours_from_embeddings, "dense re-sum": dense_from_embeddings},
            partial(agree, given=raw),
            ("matrix products of the members", products),
            {},
            small=small,
        ),
    ]


def _trials(embeddings: list[tuple[np.ndarray, np.ndarray]], relevance: np.ndarray) -> Trials:
    sources = {f"m{s}": normalised(EmbeddingScores(*both), "row_l2") for s, both in enumerate(embeddings)}
    return Trials([DevPart(sources, sparse.csr_array(relevance))], METRIC, 100)


def _in_full(given: Prepared, number: int) -> float:
    sources = [normalised(EmbeddingScores(*both), "row_l2") for both in given.embeddings]
    mixed = WeightedScores(sources, given.weights[number].tolist())
    return float(per_query(METRIC, rank(mixed, sparse.csr_array(given.relevance), 0)).mean())


def _phrases(rows: int, rng: np.random.Generator) -> np.ndarray:
    """[N] the phrase of each row."""
    if TRAFFIC.exists():
        import pandas as pd

        return np.asarray(pd.factorize(pd.read_parquet(TRAFFIC, columns=["attributes"])["attributes"])[0][-rows:])
    sizes = np.minimum(1 + rng.geometric(0.4, rows), 26)  # about 600 phrases among 1464 rows
    return np.repeat(np.arange(rows), sizes)[:rows]


def _member(key: np.ndarray, shared: np.random.Generator, own: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Texts and images [N, D] of unit length; R@1 of about 0.45 alone, and more together."""
    meaning = shared.standard_normal((key.max() + 1, 32))
    picture = meaning[key] + 0.8 * shared.standard_normal((len(key), 32))
    read = (meaning + 0.8 * own.standard_normal(meaning.shape))[key]
    seen = picture + 0.8 * own.standard_normal(picture.shape)
    into = own.standard_normal((32, DIMENSION))
    sides = [side @ into for side in (read, seen)]
    return tuple((side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides)  # type: ignore[return-value]


def _row_normalised(scores: np.ndarray) -> np.ndarray:
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    return scores


def _mixtures(trials: int) -> np.ndarray:
    """The first `trials` of the mixtures whose weights are multiples of a tenth, in an order that is not sorted."""
    bars = [np.diff([-1, *b, 10 + MEMBERS - 1]) - 1 for b in combinations(range(10 + MEMBERS - 1), MEMBERS - 1)]
    grid = np.array(bars, dtype=np.float64) / 10
    return np.random.default_rng(0).permutation(grid)[:trials]
