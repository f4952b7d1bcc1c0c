"""The best k of a gallery as they are defined: all inner products in fp64, sorted, equal ones in the order of rows."""

import numpy as np


def best_k(queries: np.ndarray, gallery: np.ndarray, k: int, allowed: np.ndarray | None = None):
    scores, rows = [], []
    for query in queries.astype(np.float64):
        products = (gallery.astype(np.float64) * query).sum(axis=1)
        order = sorted(range(len(gallery)), key=lambda row: (-products[row], row))
        order = [row for row in order if allowed is None or allowed[row]][:k]
        rows.append(order)
        scores.append(products[order])
    return np.array(scores), np.array(rows)
