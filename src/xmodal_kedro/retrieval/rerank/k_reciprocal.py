"""k-reciprocal encoding (Zhong et al., arXiv 1701.08398): candidates are as near as their neighbourhood to the query's.

The paper ranks images for an image. Here the query is of the other modality, whose vectors lie apart from those of the
gallery: a text is closer to no image than images are to each other, so it could never be in the list of one. What
follows from that, all neighbourhoods being sets of gallery items:

- Gallery items are encoded as in the paper, over the whole gallery of the slice: N(i, k) is the item itself and the k
  others that are most like it, R(i, k) those that name i in return, and R*(i) adds R(j, k / 2) of every j in R(i, k)
  of which at least two thirds lie in R(i, k).
- The query's list N(q, k) is its first k candidates of the first stage. Nobody is asked to name the query in return:
  that would compare cosines across the gap, or with the lists of other queries, which a served query does not have.
  From there R*(q) follows as above.
- Entries of an encoding are exp(-distance) over R* and sum to 1, as in the authors' code. A distance is 1 minus a
  cosine of the member, so the gap, a constant of all cosines with texts, cancels.
- Local query expansion averages an encoding with those of the nearest: k2 = k / 3 (6 of 20 in the paper) including
  itself. The query counts as its own nearest.
- The original distance is the place of the first stage's score between the worst (1) and the best candidate (0), so
  `share` does not depend on the scale of a fusion; where all are equal, it says nothing. share = 1 keeps the order.

Lists are streamed; encodings are sparse with O(k^2) entries each at most and about 2 k^2 / 3 before the expansion, so
memory is linear in queries and gallery.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.rerank.stage import Answer, Asked, Direction, second_stage
from xmodal_kedro.retrieval.scores import EmbeddingScores

BLOCK = 2048  # gallery items that are encoded at once


class Neighbourhoods(NamedTuple):
    """Encoded gallery of M items.

    Attributes:
        half: [M, M] CSR bool, R(i, k / 2), the item itself included.
        encodings: [M, M] CSR fp64 after local expansion; rows sum to 1.
    """

    half: sparse.csr_array
    encodings: sparse.csr_array


@second_stage("k_reciprocal", directions=("t2i", "i2t"))
def ask_neighbourhoods(asked: Asked) -> dict[Direction, Answer]:
    """Jaccard similarity of neighbourhoods, mixed with the score of the first stage."""
    answers: dict[Direction, Answer] = {}
    for direction, (rows, first) in asked.candidates.items():
        queries, gallery = asked.vectors(direction)
        known = neighbourhoods(gallery, asked.config.neighbours)
        similar = np.empty(rows.shape)
        for start in range(0, len(rows), asked.config.batch_size):
            batch = slice(start, start + asked.config.batch_size)
            similar[batch] = jaccard(queries[batch], gallery, rows[batch], known, asked.config.neighbours)
        second = similar.astype(np.float32)  # identical items tie, whatever the last bits of fp64 say
        share = asked.config.share
        answers[direction] = Answer(second, (1.0 - share) * second.astype(np.float64) + share * placed(first))
    return answers


def neighbourhoods(gallery: np.ndarray, neighbours: int) -> Neighbourhoods:
    """Encode every item of a gallery by its reciprocal neighbours.

    Args:
        gallery: [M, D] of length 1.
        neighbours: k; a smaller gallery is taken whole.
    """
    size = len(gallery)
    lists = nearest(gallery, neighbours)
    reciprocal = _mutual(lists, neighbours + 1, size)
    half = _mutual(lists, half_of(neighbours) + 1, size)
    blocks = []
    for start in range(0, size, BLOCK):
        part = slice(start, min(start + BLOCK, size))
        support = expanded(reciprocal[part], half).tocoo()
        cosines = _cosines(gallery[part], gallery, support.row, support.col)
        blocks.append(_encoding(support.row, support.col, cosines, (part.stop - start, size)))
    encodings = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((0, 0))
    return Neighbourhoods(half, sparse.csr_array(_mean_of(lists[:, : local(neighbours)], size) @ encodings))


def jaccard(
    queries: np.ndarray, gallery: np.ndarray, candidates: np.ndarray, known: Neighbourhoods, neighbours: int
) -> np.ndarray:
    """Similarity [B, K] in [0, 1] of the neighbourhoods of queries and of their candidates, 1 minus Jaccard's distance.

    Args:
        queries: [B, D] of length 1.
        gallery: [M, D] of length 1.
        candidates: [B, K] rows of the gallery, best of the first stage first.
        known: The encoded gallery.
        neighbours: k.
    """
    count, width = candidates.shape
    first = candidates[:, :neighbours]
    support = expanded(_mean_of(first, len(gallery)) > 0, known.half).tocoo()
    own = _encoding(support.row, support.col, _cosines(queries, gallery, support.row, support.col), support.shape)
    others = candidates[:, : local(neighbours) - 1]  # the query itself is the first of its nearest
    own = (own + others.shape[1] * (_mean_of(others, len(gallery)) @ known.encodings)) / (1 + others.shape[1])
    common = own[np.repeat(np.arange(count), width)].minimum(known.encodings[candidates.ravel()]).sum(axis=1)
    shared = np.asarray(common).reshape(candidates.shape)
    return shared / (2.0 - shared)  # both sum to 1, so the maxima sum to 2 minus the minima


def nearest(gallery: np.ndarray, neighbours: int) -> np.ndarray:
    """Every item and those most like it, [M, 1 + k] rows, itself first; of equal cosines the earlier item is nearer."""
    found = rank(EmbeddingScores(gallery, gallery), None, neighbours + 1).top_rows
    own = np.arange(len(gallery))[:, None]
    # An item that many others equal may be missing from its own list; then its last entry makes room.
    order = np.where(found == own, 0, 1 + np.arange(found.shape[1]))
    others = np.take_along_axis(found, order.argsort(axis=1), axis=1)
    missing = others[:, :1] != own
    return np.concatenate([own, np.where(missing, others[:, :-1], others[:, 1:])], axis=1)


def expanded(reciprocal: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """R* [B, M] of R [B, M]: R(j, k / 2) joins for each member j, where two thirds of it are members already."""
    members = sparse.csr_array(reciprocal, dtype=np.int32)
    halves = sparse.csr_array(half, dtype=np.int32)
    overlap = (members @ halves.T).multiply(members).tocoo()
    sizes = np.asarray(halves.sum(axis=1)).ravel()
    inside = 3 * overlap.data >= 2 * sizes[overlap.col]
    joining = sparse.csr_array(
        (np.ones(inside.sum(), np.int32), (overlap.row[inside], overlap.col[inside])), shape=members.shape
    )
    return sparse.csr_array(members + joining @ halves) > 0


def placed(first: np.ndarray) -> np.ndarray:
    """Scores [N, K] between the worst (0) and the best (1) of their row; 1 where all are equal."""
    if first.shape[1] == 0:
        return first
    low, high = first.min(axis=1, keepdims=True), first.max(axis=1, keepdims=True)
    return np.divide(first - low, high - low, out=np.ones_like(first), where=high > low)


def half_of(neighbours: int) -> int:
    """How many neighbours the lists that may join have, the item itself not counted."""
    return max(1, round(neighbours / 2))


def local(neighbours: int) -> int:
    """How many encodings are averaged, the item's own included."""
    return max(1, round(neighbours / 3))


def _mutual(lists: np.ndarray, width: int, size: int) -> sparse.csr_array:
    """Pairs of items that are in each other's list of `width`, [M, M] bool."""
    near = _mean_of(lists[:, :width], size) > 0
    return sparse.csr_array(near.multiply(near.T))


def _mean_of(lists: np.ndarray, size: int) -> sparse.csr_array:
    """The matrix [B, M] whose product is the mean over each list [B, L] of distinct rows."""
    count, width = lists.shape
    starts = np.arange(count + 1) * width
    rows = lists.flatten()  # a copy: scipy sorts the indices of a matrix in place
    return sparse.csr_array((np.full(lists.size, 1.0 / max(1, width)), rows, starts), shape=(count, size))


def _cosines(left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines [P] fp64 of chosen pairs, in blocks."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), 1 << 14):
        part = slice(start, start + (1 << 14))
        found[part] = np.einsum("pd,pd->p", left[rows[part]], right[columns[part]], dtype=np.float64)
    return found


def _encoding(rows: np.ndarray, columns: np.ndarray, cosines: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """exp(-(1 - cosine)) at the given places, rows summing to 1."""
    weights = np.exp(cosines - 1.0)
    sums = np.bincount(rows, weights, minlength=shape[0])
    return sparse.csr_array((weights / sums[rows], (rows, columns)), shape=shape)
