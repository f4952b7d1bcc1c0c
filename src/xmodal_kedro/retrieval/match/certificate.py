"""The proof that comes with an assignment: what it reaches, what none can exceed, and how that was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Certificate:
    """Weak duality for an assignment (Kuhn 1955; Munkres 1957).

    Row prices u and column prices v with u_i + v_j >= s_ij for every allowed pair bound the sum of any assignment. The
    reduced cost of a pair is u_i + v_j - s_ij.

    Attributes:
        value: Sum of the scores of the assignment, of exact scores.
        bound: No assignment of as many pairs has a higher sum; what reduced costs lack to zero by rounding is in it.
        rounds: How often the candidate graph was solved; in the last round no pair outside of it was violating.
        edges: Pairs in the last candidate graph.
        violating: Pairs outside the graph whose reduced cost was negative, per round; the last is 0.
        smallest: Lowest reduced cost of all allowed pairs that had to be looked at exactly; rounding may leave it
            below zero by some 1e-12 of the range of the scores.
        unmatched: Rows of the shorter side that no assignment can match with the others.
    """

    value: float
    bound: float
    rounds: int
    edges: int
    violating: tuple[int, ...]
    smallest: float
    unmatched: int = 0

    @property
    def gap(self) -> float:
        """How much more an assignment could reach at most; 0 but for rounding."""
        return self.bound - self.value

    def __str__(self) -> str:
        """One line for a log."""
        left = f", {self.unmatched} cannot be matched" if self.unmatched else ""
        rounds = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        return (
            f"sum {self.value:.9g} <= {self.bound:.9g} (gap {self.gap:.1e}), {rounds}, {self.edges} edges, "
            f"violating {'+'.join(map(str, self.violating)) or 0}, smallest reduced cost {self.smallest:.1e}{left}"
        )


def joint(parts: Sequence[Certificate]) -> Certificate:
    """The certificate of problems that share no row and no column."""
    violating = zip_longest(*(part.violating for part in parts), fillvalue=0)
    return Certificate(
        value=sum(part.value for part in parts),
        bound=sum(part.bound for part in parts),
        rounds=max((part.rounds for part in parts), default=0),
        edges=sum(part.edges for part in parts),
        violating=tuple(sum(found) for found in violating),
        smallest=min((part.smallest for part in parts), default=0.0),
        unmatched=sum(part.unmatched for part in parts),
    )
