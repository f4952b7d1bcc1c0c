"""Alpha query expansion (Radenovic et al., arXiv 1711.02512): the query moves towards its best items, once.

The new query is q + sum over its `expansion` best candidates x of max(cos(q, x), 0)^alpha x, and candidates are scored
by their cosine with it. In the paper query and items are images, whose cosines reach 1; a text and its image seldom
pass 0.4 in a model of CLIP's kind, and 0.4^3 = 0.06 leaves the query almost where it was. There alpha = 0 (average
query expansion, all items weigh as much as the query) to 1 does more; it is to be chosen on dev. The best items are
those of the first stage, which may know better than this member; a candidate with a negative cosine does not join.
"""

from __future__ import annotations

import numpy as np

from xmodal_kedro.retrieval.rerank.stage import Answer, Asked, Direction, second_stage


@second_stage("query_expansion", directions=("t2i", "i2t"))
def ask_expanded(asked: Asked) -> dict[Direction, Answer]:
    """Cosines of the candidates with the expanded query."""
    answers: dict[Direction, Answer] = {}
    for direction, (rows, _) in asked.candidates.items():
        queries, gallery = asked.vectors(direction)
        second = np.empty(rows.shape, np.float32)
        for start in range(0, len(rows), asked.config.batch_size):
            batch = slice(start, start + asked.config.batch_size)
            items = gallery[rows[batch]]
            second[batch] = expanded_scores(queries[batch], items, asked.config.expansion, asked.config.alpha)
        answers[direction] = Answer(second, second.astype(np.float64))
    return answers


def expanded_scores(queries: np.ndarray, items: np.ndarray, expansion: int, alpha: float) -> np.ndarray:
    """Cosines [B, K] fp64 of candidates with their expanded query.

    Args:
        queries: [B, D] of length 1.
        items: [B, K, D] of length 1, best of the first stage first.
        expansion: How many join the query; fewer candidates all join.
        alpha: Exponent of their cosines as weights; 0 lets every item with a cosine above zero weigh 1.
    """
    queries, items = queries.astype(np.float64), items.astype(np.float64)
    joining = items[:, :expansion]
    cosines = np.einsum("bd,bkd->bk", queries, joining)
    weights = np.where(cosines > 0.0, np.abs(cosines) ** alpha, 0.0)
    moved = queries + np.einsum("bk,bkd->bd", weights, joining)
    return np.einsum("bd,bkd->bk", moved / np.linalg.norm(moved, axis=1, keepdims=True), items)
