"""One-to-one assignment of n texts to n images: ours with its proof against scipy's and lapx's dense solvers.

Planted: image i is text i plus noise of the same length, which stands for what a trained member gives. Hard: both sides
are independent Gaussian vectors, so that nothing tells who belongs to whom. Vectors have unit length and D = 512. The
peers' time is that of solving a matrix that is there; their memory includes the matrix, which ours never builds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import lap
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contest import Goal, Options, compete, peak_mb
from xmodal_kedro.retrieval.match import Match, assign
from xmodal_kedro.retrieval.scores import EmbeddingScores

D = 512
BLOCK = 500  # rows of the peers' matrix that are computed at once


@dataclass
class Problem:
    """Vectors [n, D] of both sides, and the peers' matrix of negative scores [n, n] fp64 once it is there."""

    texts: Tensor
    images: Tensor
    costs: np.ndarray | None = None


def problem(n: int, kind: str, *, costs: bool) -> Problem:
    """The inputs, the same in every process."""
    chance = torch.Generator().manual_seed(n)
    texts = F.normalize(torch.randn(n, D, generator=chance), dim=1)
    images = F.normalize(torch.randn(n, D, generator=chance), dim=1)
    if kind == "planted":
        images = F.normalize(texts + images, dim=1)[torch.randperm(n, generator=chance)]
    made = Problem(texts, images)
    if costs:
        made.costs = _costs(made)
    return made


def _costs(made: Problem) -> np.ndarray:
    costs = np.empty((len(made.texts), len(made.images)))
    for start in range(0, len(costs), BLOCK):
        costs[start : start + BLOCK] = (made.texts[start : start + BLOCK] @ made.images.T).neg_().numpy()
    return costs


def ours(made: Problem) -> Match:
    """From the vectors, proof included."""
    return assign(EmbeddingScores(made.texts, made.images))


def scipy_dense(made: Problem) -> float:
    """scipy's solver on its fastest input: fp64, costs (it would negate a copy to maximise)."""
    costs = _costs(made) if made.costs is None else made.costs
    return -float(costs[linear_sum_assignment(costs)].sum())


def lapx_dense(made: Problem) -> float:
    """lapx's fastest dense solver, lapjvs, by its default in fp32; the sum is of fp64."""
    costs = _costs(made) if made.costs is None else made.costs
    return -float(lap.lapjvs(costs)[0])


def all_scores(made: Problem) -> None:
    """Every score once, as coarsely as any proof can look at them."""
    texts, images = made.texts.bfloat16(), made.images.bfloat16()
    for start in range(0, len(texts), BLOCK):
        texts[start : start + BLOCK] @ images.T


def same_optimum(outputs: dict[str, Any]) -> dict[str, str]:
    """Ours is proven, and nobody's sum differs by more than 1e-6."""
    match = outputs["ours"]
    value, n = match.certificate.value, match.shape[0]
    assert len(np.unique(match.query_rows)) == len(np.unique(match.gallery_rows)) == n, "not one to one"
    assert abs(match.certificate.gap) <= 1e-9 * abs(value), f"not proven: {match.certificate}"
    print(f"assign: n = {n}: {match.certificate}")
    found = {}
    for name, peer in outputs.items():
        if name != "ours":
            apart = abs(peer - value) / abs(value)
            assert apart <= 1e-6, f"{name} found the sum {peer}, ours is {match.certificate}"
            found[name] = f"same optimum to {apart:.0e}"
    return found


def _case(n: int, kind: str, goals: dict[str, Goal], *, repetitions: int) -> dict[str, Any]:
    """A case whose peaks are measured from the vectors on: of the peers, the matrix is part.

    What the peers take does not depend on the scores, their time does: their peaks are those of a planted problem.
    """
    sides = {"ours": ours, "scipy": scipy_dense, "lapx lapjvs": lapx_dense}
    case = compete(
        f"{n} x {n}, {'planted pairs' if kind == 'planted' else 'independent Gaussian vectors'}, D={D}",
        partial(problem, n, kind, costs=True),
        sides,
        same_optimum,
        ("every score once in bf16", all_scores),
        goals,
        memory=False,
        repetitions=repetitions,
        bf16=True,
    )
    small = partial(problem, 1000, "hard", costs=False)
    peak = case["ours"]["peak_mb"] = peak_mb(partial(problem, n, kind, costs=False), ours, small)
    for name, facts in case["peers"].items():
        theirs = facts["peak_mb"] = peak_mb(partial(problem, n, "planted", costs=False), sides[name], small)
        if facts["memory_goal"] is not None and peak is not None and theirs is not None:
            found = peak / max(theirs, 1e-9)
            aim = {"what": f"our peak over that of {name}", "goal": facts["memory_goal"], "found": found}
            case["goals_met"].append({**aim, "met": found <= facts["memory_goal"]})
    case["passed"] = all(one["met"] for one in case["goals_met"])
    return case


def run(options: Options) -> list[dict[str, Any]]:
    """2k and 10k and 20k, planted and hard; 50k hard ours alone."""
    if options.quick:
        return [_case(1500, kind, {}, repetitions=3) for kind in ("planted", "hard")]
    tenth = Goal(memory=0.1)
    goals = {
        10_000: {"scipy": Goal(3.0, 0.1), "lapx lapjvs": Goal(3.0, 0.1)},
        20_000: {"scipy": Goal(8.0, 0.1), "lapx lapjvs": tenth},
    }
    cases = [
        _case(n, kind, goals.get(n, {}) if kind == "hard" else {}, repetitions=5)
        for n in (2000, 10_000, 20_000)
        for kind in ("planted", "hard")
    ]
    cases.append(
        compete(
            f"50000 x 50000, independent Gaussian vectors, D={D}, ours alone",
            partial(problem, 50_000, "hard", costs=False),
            {"ours": ours},
            same_optimum,
            ("every score once in bf16", all_scores),
            {},
            peak_goal_mb=4096,
            small=partial(problem, 1000, "hard", costs=False),
            repetitions=1,
        )
    )
    return cases
