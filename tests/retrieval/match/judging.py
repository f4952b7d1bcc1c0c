"""Sides to match, and a check that a match is one, the best, and proves it."""

import numpy as np
import pytest

METHODS = ["dense", "sparse"]


def judged(match, scores, allowed=None, *, best):
    """Check that a match is one, reaches the best (count, sum), and that its certificate says so."""
    scores = np.asarray(scores, dtype=np.float64)
    assert match.query_rows.tolist() == sorted(set(match.query_rows.tolist()))
    assert len(set(match.gallery_rows.tolist())) == len(match.gallery_rows)
    taken = scores[match.query_rows, match.gallery_rows]
    assert match.scores == pytest.approx(taken, rel=1e-6, abs=1e-6)
    if allowed is not None:
        assert allowed[match.query_rows, match.gallery_rows].all()
    count, total = best
    scale = 1 + np.abs(scores).max(initial=0.0) * max(1, count)
    assert len(match.query_rows) == count
    assert taken.sum() == pytest.approx(total, abs=1e-9 * scale)
    proof = match.certificate
    assert proof.value == pytest.approx(total, abs=1e-9 * scale)
    assert -1e-9 * scale <= proof.gap <= 1e-9 * scale
    assert proof.violating == () or proof.violating[-1] == 0
    assert -1e-9 * scale <= proof.smallest <= 0
    assert len(proof.violating) == proof.rounds


def vectors(seed, n, m, kind, d=24):
    """Two sides of embeddings [n, d] and [m, d]."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if kind == "pairs":
        both = min(n, m)
        gallery[rng.permutation(m)[:both]] = queries[:both] + 0.7 * rng.standard_normal((both, d))
    elif kind == "clusters":
        queries, gallery = queries[rng.integers(0, 9, n)], gallery[rng.integers(0, 9, m)]
        queries = queries + 0.05 * rng.standard_normal((n, d))
    elif kind == "duplicates":
        queries, gallery = queries[rng.integers(0, 9, n)], gallery[rng.integers(0, 11, m)]
    elif kind == "hubs":
        gallery[: m // 10] *= 4
    elif kind == "narrow":
        queries, gallery = 1 + 0.01 * queries, 1 + 0.01 * gallery
    return queries.astype(np.float32), gallery.astype(np.float32)
