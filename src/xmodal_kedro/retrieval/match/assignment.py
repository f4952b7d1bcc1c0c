"""One-to-one matching of queries and gallery items: the assignment with the highest sum of scores, proven, at any size.

Small problems are solved over all pairs. Large ones never see them at once: the best few of every row and column make a
sparse graph, on which the problem is solved exactly; its dual prices are then held against all scores, tile by tile;
pairs that could improve the sum join the graph, and so on until there is none. The result is the optimum over all pairs
(weak duality), in memory for the graph and a few tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from xmodal_kedro.retrieval.match import dense
from xmodal_kedro.retrieval.match.candidates import find_candidates
from xmodal_kedro.retrieval.match.certificate import Certificate, joint
from xmodal_kedro.retrieval.match.check import check
from xmodal_kedro.retrieval.match.graph import Graph, Solution, solve
from xmodal_kedro.retrieval.match.tiles import Forbidden, NotFiniteError, Part
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource, Transposed

Method = Literal["auto", "dense", "sparse"]
Labels = np.ndarray | torch.Tensor | Sequence[int]
SMALL = 1 << 18  # pairs; up to here exact scores of all of them cost less than the search for the best
SMALL_PRODUCTS = 1 << 22  # the same where scores are sums of products, all of which take no more than that
BAD = 1 / 500  # of all rows without a partner among the candidates: prices that say little, and slow to find
AT_ONCE = 1 << 15  # exact scores that are computed together


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs in the order of the queries.

    Attributes:
        shape: (N, M), queries and gallery.
        query_rows: [K] int64, ascending; K = min(N, M) for an assignment in which no pair is forbidden.
        gallery_rows: [K] int64; distinct for an assignment.
        scores: [K] fp32.
        certificate: The proof that the sum is the highest; none where nothing was optimised.
    """

    shape: tuple[int, int]
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    scores: np.ndarray
    certificate: Certificate | None = None

    def gallery_row_of(self) -> np.ndarray:
        """[N] int64 gallery row of every query, -1 for those without a partner."""
        rows = np.full(self.shape[0], -1, dtype=np.int64)
        rows[self.query_rows] = self.gallery_rows
        return rows


def assign(
    scores: ScoreSource,
    *,
    allowed: sparse.sparray | sparse.spmatrix | None = None,
    forbidden: sparse.sparray | sparse.spmatrix | None = None,
    query_groups: Labels | None = None,
    gallery_groups: Labels | None = None,
    method: Method = "auto",
) -> Match:
    """The one-to-one assignment with the highest sum of scores among those that match as many pairs as can be.

    With N != M the longer side keeps items unmatched, and so does the shorter one where the pairs that remain allowed
    leave no other way: the number of pairs comes first, then the sum. Which of several optima is found depends on the
    order of rows, and is the same in every run.

    Args:
        scores: [N, M], higher is better.
        allowed: [N, M] sparse, nonzero where a pair may be matched; none other may. None allows all.
        forbidden: [N, M] sparse, nonzero where a pair may not be matched.
        query_groups: [N] integer labels: only pairs of one group are matched, each group is a problem of its own.
        gallery_groups: [M] integer labels; both or neither are given.
        method: `dense` computes exact scores of all allowed pairs (memory N M), `sparse` works on a candidate graph
            (memory N + M times some 100 bytes for each of the best that are looked at); `auto` takes the first for
            problems of up to 2048 x 2048 (512 x 512 where scores are no sums of products). Candidates that leave rows
            without a partner, such as those of a member whose vectors have collapsed, mislead the sparse solver: then
            all pairs are taken, if their scores fit 4 GiB. Where `allowed` is given, its pairs are all there is, and
            are the graph.

    Raises:
        ValueError: A score is not finite (its rows are named), or shapes, groups and method do not fit.
    """
    n, m = scores.shape
    for name, pairs in (("allowed", allowed), ("forbidden", forbidden)):
        if pairs is not None and pairs.shape != (n, m):
            raise ValueError(f"'{name}' has shape {pairs.shape}, the scores have {(n, m)}: rows are queries in both.")
    if method not in ("auto", "dense", "sparse"):
        raise ValueError(f"method is '{method}'; it must be auto, dense or sparse.")
    allowed, forbidden = (None if pairs is None else _canonical(pairs) for pairs in (allowed, forbidden))
    found: list[tuple[np.ndarray, np.ndarray, Certificate]] = []
    for rows, columns in _groups(scores.shape, query_groups, gallery_groups):
        part, turned = _shorter_first(scores, rows, columns)
        may, must_not = (_cut(pairs, rows, columns, turned) for pairs in (allowed, forbidden))
        try:
            partner, certificate = _solved(part, may, must_not, method)
        except NotFiniteError as error:
            row, column = (error.column, error.row) if turned else (error.row, error.column)
            raise ValueError(
                f"the score of query row {rows[row]} and gallery row {columns[column]} is not a finite number."
            ) from None
        own = (partner >= 0).nonzero()[0]
        query, gallery = (partner[own], own) if turned else (own, partner[own])
        found.append((rows[query], columns[gallery], certificate))
    query = np.concatenate([part[0] for part in found]) if found else np.empty(0, np.int64)
    gallery = np.concatenate([part[1] for part in found]) if found else np.empty(0, np.int64)
    order = query.argsort(kind="stable")
    return _match(scores, query[order], gallery[order], joint([part[2] for part in found]))


def best_of_each(scores: ScoreSource) -> Match:
    """Every query with its best item, whoever else took it: what matching without the one-to-one rule gives."""
    n, m = scores.shape
    ranking = rank(scores, None, 1)
    return _match(scores, np.arange(n if m else 0), ranking.top_rows[:, 0] if m else np.empty(0, np.int64), None)


def _solved(
    scores: ScoreSource, allowed: sparse.csr_array | None, forbidden: sparse.csr_array | None, method: Method
) -> tuple[np.ndarray, Certificate]:
    """[n] column of each row or -1, and the proof; [n, m] with n <= m."""
    n, m = scores.shape
    if allowed is not None:
        return _over(scores, _all_keys(allowed, forbidden))
    small = n * m <= SMALL or (n * m <= SMALL_PRODUCTS and dense.is_cheap(scores))
    if method == "dense" or (method == "auto" and small):
        return _over_all(scores, forbidden)
    hidden = Forbidden(forbidden, scores.device)
    # Of random scores the best partner is the r-th best in 2^-r of all cases (Aldous, Random Structures and
    # Algorithms 18, 2001): log2(n) and some are seldom not enough.
    candidates = find_candidates(scores, hidden, min(ceil(2 * log2(m)) + 4, m))
    if candidates.alone > BAD * n and 8 * n * m <= dense.BYTES:
        return _over_all(scores, forbidden)
    graph = Graph((n, m), candidates.keys, _exact(scores, candidates.keys))
    violating: list[int] = []
    while True:
        solution = solve(graph, candidates.low, candidates.high)
        found = check(scores, hidden, solution, max(abs(candidates.low), abs(candidates.high)))
        new = ~graph.has(found.keys)
        violating.append(found.count if new.any() else 0)
        if not new.any():
            return solution.columns, _proof(solution, found.smallest, len(graph.keys), violating)
        graph = graph.with_more(found.keys[new], found.scores[new])


def _over_all(scores: ScoreSource, forbidden: sparse.csr_array | None) -> tuple[np.ndarray, Certificate]:
    """The same over all pairs but the forbidden ones."""
    solution, smallest, edges = dense.solve_dense(scores, forbidden)
    return solution.columns, _proof(solution, smallest, edges, [0])


def _proof(solution: Solution, smallest: float, edges: int, violating: list[int]) -> Certificate:
    """The bound includes what reduced costs lack; where rounding puts it below what was reached, that is the bound."""
    n = len(solution.columns)
    bound = solution.bound - n * smallest
    if solution.value - n * solution.tolerance <= bound:
        bound = max(bound, solution.value)
    return Certificate(
        solution.value, bound, len(violating), edges, tuple(violating), smallest, solution.unmatched
    )  # fmt: skip


def _over(scores: ScoreSource, keys: np.ndarray) -> tuple[np.ndarray, Certificate]:
    """The same over a graph of all allowed pairs: nothing is left to check."""
    exact = _exact(scores, keys)
    graph = Graph(scores.shape, keys, exact)
    solution = solve(graph, float(exact.min()), float(exact.max())) if len(keys) else solve(graph, 0.0, 0.0)
    rows, columns = np.divmod(keys, scores.shape[1])
    smallest = min(0.0, float((solution.rows_price[rows] + solution.columns_price[columns] - exact).min(initial=0.0)))
    return solution.columns, _proof(solution, smallest, len(keys), [0])


def _all_keys(allowed: sparse.csr_array, forbidden: sparse.csr_array | None) -> np.ndarray:
    """[E] int64, ascending: row * M + column of the pairs that may be matched."""
    keys = _keys(allowed)
    return keys if forbidden is None else np.setdiff1d(keys, _keys(forbidden), assume_unique=True)


def _keys(pairs: sparse.csr_array) -> np.ndarray:
    rows = np.arange(pairs.shape[0]).repeat(np.diff(pairs.indptr))
    return rows * pairs.shape[1] + pairs.indices


def _exact(scores: ScoreSource, keys: np.ndarray) -> np.ndarray:
    """[K] fp64; NotFiniteError if one is not finite."""
    exact = np.empty(len(keys))
    for start in range(0, len(keys), AT_ONCE):
        rows, columns = np.divmod(keys[start : start + AT_ONCE], scores.shape[1])
        sides = (torch.from_numpy(side).to(scores.device) for side in (rows, columns))
        exact[start : start + AT_ONCE] = scores.pairs(*sides).cpu().numpy()
    if not np.isfinite(exact).all():
        raise NotFiniteError(*divmod(int(keys[~np.isfinite(exact)][0]), scores.shape[1]))
    return exact


def _groups(
    shape: tuple[int, int], queries: Labels | None, gallery: Labels | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns [n], [m] int64, ascending, of each problem; those with an empty side are left out."""
    if (queries is None) != (gallery is None):
        raise ValueError("groups are needed of both sides: give query_groups and gallery_groups, or neither.")
    if queries is None or gallery is None:
        if min(shape):
            yield np.arange(shape[0]), np.arange(shape[1])
        return
    labels = [np.asarray(side) for side in (queries, gallery)]
    for name, side, length in zip(("query", "gallery"), labels, shape, strict=True):
        if side.shape != (length,):
            raise ValueError(f"{name}_groups has shape {side.shape}; it must be a label for each of {length} rows.")
    orders = [side.argsort(kind="stable") for side in labels]
    for label in np.intersect1d(labels[0], labels[1]):
        rows, columns = (
            order[slice(*(int(np.searchsorted(side, label, end, order)) for end in ("left", "right")))]
            for side, order in zip(labels, orders, strict=True)
        )
        yield rows, columns


def _shorter_first(scores: ScoreSource, rows: np.ndarray, columns: np.ndarray) -> tuple[ScoreSource, bool]:
    """The problem with its shorter side as rows, and whether that took a turn."""
    if (len(rows), len(columns)) != scores.shape:
        scores = Part(scores, *(torch.from_numpy(side).to(scores.device) for side in (rows, columns)))
    turned = len(rows) > len(columns)
    return (Transposed(scores) if turned else scores), turned


def _canonical(pairs: sparse.sparray | sparse.spmatrix) -> sparse.csr_array:
    """As CSR of booleans with sorted, distinct, nonzero entries."""
    found = sparse.csr_array(pairs, dtype=bool, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def _cut(
    pairs: sparse.csr_array | None, rows: np.ndarray, columns: np.ndarray, turned: bool
) -> sparse.csr_array | None:
    """What a problem has of the pairs, sorted."""
    if pairs is None:
        return None
    if (len(rows), len(columns)) != pairs.shape:
        pairs = pairs[rows][:, columns]
    pairs = sparse.csr_array(pairs.T) if turned else pairs
    pairs.sort_indices()
    return pairs


def _match(scores: ScoreSource, query: np.ndarray, gallery: np.ndarray, certificate: Certificate | None) -> Match:
    rows = (torch.from_numpy(side.astype(np.int64)).to(scores.device) for side in (query, gallery))
    values = scores.pairs(*rows).float().cpu().numpy()
    return Match(scores.shape, query.astype(np.int64), gallery.astype(np.int64), values, certificate)
