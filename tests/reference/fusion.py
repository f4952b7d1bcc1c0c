"""Fusions by loops over their formulas: reciprocal ranks, greedy ensemble selection, dominance."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def reciprocal_rank(rows: Sequence[Sequence[float]], weights: Sequence[float], candidates: int) -> list[float]:
    """Sum of weight / (60 + place) for each item of one query; a place counts the items that are strictly better.

    A member adds nothing for items that are not among its best `candidates`; of equal scores the earlier item is.
    """
    total = [0.0] * len(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        for item in order[:candidates]:
            total[item] += weight / (60 + 1 + sum(other > row[item] for other in row))
    return total


def greedy(members: int, rounds: int, value: Callable[[list[float]], float]) -> list[float]:
    """Weights by selection with replacement: the member that helps most joins; the best bag on the way counts."""
    bag: list[int] = []
    seen = []

    def weights(of: list[int]) -> list[float]:
        return [of.count(member) / len(of) for member in range(members)]

    def merit(of: list[int]) -> tuple[float, float]:
        return round(value(weights(of)), 12), -round(sum(w * w for w in weights(of)), 12)

    for _ in range(rounds):
        bag = max(([*bag, member] for member in range(members)), key=merit)
        seen.append(bag)
    return weights(max(seen, key=merit))
