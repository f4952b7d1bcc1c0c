"""`python -m benchmarks.tables`: write `docs/performance.md` from the results of the last contests.

Nothing is on the page that is not in `benchmarks/results/*.json`; a contest without a result is listed as not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.__main__ import CONTESTS
from benchmarks.contest import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BUSY = 0.3  # cores busy with something else when a contest began, above which the page says so

WHAT = {
    "startup": "Start-up: `kedro registry list` against that of an empty Kedro project.",
    "full_size": "Training and encoding at full size with random weights; only where there is a GPU.",
    "ranks": (
        "Recall in both directions, many-to-many. Peers that are bound by memory swing from run to run on this "
        "machine: in another, CLIP_benchmark took 8.2 s (13.7 times ours) and sentence-transformers 2.15 s (3.6 times)."
    ),
    "assign": "One-to-one assignment with a certificate of optimality.",
    "rerank": "Image-text matching over the first candidates, the text side of BLIP.",
    "search": "Exact search of a large gallery.",
    "fuse": "Four members, row-normalised, mixed, best ten of each query.",
    "weights": "Weights of four members, searched on dev.",
    "hubness": "Dual softmax and Sinkhorn.",
    "decode": "Captions by a GPT with random weights whose captions differ and end; vectors of the photos are given.",
}

# Why a goal was missed, by hand: contest -> part of the workload -> part of the goal -> reason. The gap itself is
# computed. Keep a reason only as long as the goal is missed: unused ones are refused.
REASONS: dict[tuple[str, str, str], str] = {
    ("ranks", "4% of the texts right", "share"): "Within the swing of this machine: another run gave 87 %.",
    ("ranks", "4% of the texts right", "LAVIS"): "Another run gave 5.7; what is beside the product is counting.",
    ("ranks", "4% of the texts right", "own peak"): (
        "Each core has a tile of its own. With one tile for both cores the peak was 14 MB and the time 0.74 s."
    ),
    ("assign", "10000 x 10000", "lapx"): (
        "Its lapjvs in fp32 is the fastest dense solver; we solve in fp64, and look at all scores again for the proof."
    ),
    ("assign", "20000 x 20000", "scipy"): "The candidates' graph is solved on one core.",
    ("fuse", "4 members", "dense numpy"): (
        "Norms in fp64 take a fifth of the time, and exact scores of some 15 candidates per query and member a quarter."
    ),
    ("weights", "trials", "dense re-sum"): "Within the noise: repeated runs gave 41 to 60.",
    ("hubness", "dual softmax", "numpy"): (
        "Sums of exponentials need scores in fp32 (the error bound of bf16 is a fifth of the temperature), and ranking "
        "is a second product; the peer keeps its matrix and multiplies once."
    ),
    ("decode", "ensemble of three", "one captioner"): (
        "Three cost 3.20 times as much as one in this run, 3.02 in an earlier one; of nine more in turn the median was "
        "3.10."
    ),
}

INTRO = """# Performance

Contests against peers, each in a process of its own: `uv sync --group bench`, then `uv run python -m benchmarks`
(`--quick` for small sizes). This page is written from the results by `uv run python -m benchmarks.tables`.

Rules: same inputs, same threads, same machine; outputs are compared before time is read; every side is warmed up, then
all run in turn, and medians of five repetitions are compared. A peer that takes more than 20 s runs once and is marked
so. Peers run with the best settings that they document; where one cannot be installed beside today's libraries, a
re-statement of its algorithm stands in and says so in its name. Peak memory is measured in another process for each
side, above what it holds after imports, inputs and a warm-up. The limit is what bounds every implementation on this
machine, measured in the same run; the share is the limit's time over ours. Ratios are the peer's time over ours. Goals
that rest on bf16 apply where the CPU has instructions for it (`avx512_bf16` or `amx_bf16`).
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page, in Markdown."""
    sections = [INTRO, *(section(name, results.get(name)) for name in CONTESTS)]
    gaps = [line for name in CONTESTS if name in results for line in missed(results[name])]
    sections.append("## Missed goals\n\n" + ("\n".join(gaps) if gaps else "None of those that were measured.") + "\n")
    return "\n".join(sections)


def section(name: str, result: Mapping[str, Any] | None) -> str:
    """One contest."""
    lines = [f"## `{name}`", "", WHAT.get(name, ""), ""]
    if result is None or not result["cases"]:
        return "\n".join([*lines, "Not measured." if result is None else "No case of it runs on this machine.", ""])
    lines += [measured_on(result), ""]
    lines += ["| workload | side | time | peak memory | ratio | goals | outputs |", "|---|---|---|---|---|---|---|"]
    for case in result["cases"]:
        lines += [f"| {' | '.join(cells)} |" for cells in rows(case)]
    return "\n".join([*lines, ""])


def measured_on(result: Mapping[str, Any]) -> str:
    """Machine and circumstances, as a sentence."""
    machine = result["machine"]
    flags = f", {', '.join(machine['flags'])}" if machine["flags"] else ", without bf16 instructions"
    text = f"{machine['cpu']}, {machine['cores']} cores{flags}, Python {machine['python']}, {machine['system']}."
    if result.get("quick"):
        text += " **Quick sizes**: smaller than those that the goals are for."
    if (result.get("load") or 0.0) > BUSY:
        text += f" **Not idle**: {result['load']:.1f} cores were busy when it began; times are noisy."
    return text


def rows(case: Mapping[str, Any]) -> Iterator[list[str]]:
    """Ours, the peers, the limit."""
    ours, limit = case["ours"], case["limit"]
    own = (
        []
        if ours.get("peak_goal_mb") is None
        else [
            goal(
                "peak",
                f"<= {ours['peak_goal_mb']:.0f} MB",
                ours["peak_mb"] is None or ours["peak_mb"] <= ours["peak_goal_mb"],
            )
        ]
    )
    yield [case["workload"], "**ours**", seconds(ours["seconds"]), memory(ours["peak_mb"]), "", "<br>".join(own), ""]
    for name, peer in case["peers"].items():
        aims = []
        if peer["goal"] is not None:
            aims.append(goal("ratio", f">= {peer['goal']:.3g}", peer["ratio"] >= peer["goal"]))
        if peer["memory_goal"] is not None and ours["peak_mb"] is not None and peer["peak_mb"] is not None:
            aims.append(
                goal(
                    "memory", f"<= {peer['memory_goal']:.3g}", ours["peak_mb"] <= peer["memory_goal"] * peer["peak_mb"]
                )
            )
        once = " (once)" if peer.get("once") else ""
        yield [
            "",
            name,
            seconds(peer["seconds"]) + once,
            memory(peer["peak_mb"]),
            f"{peer['ratio']:.2f}",
            "<br>".join(aims),
            peer["agrees"],
        ]
    share = (
        []
        if limit.get("share_goal") is None
        else [goal("share", f">= {limit['share_goal']:.0%}", limit["share"] >= limit["share_goal"])]
    )
    yield [
        "",
        f"limit: {limit['what']}",
        seconds(limit["seconds"]),
        "",
        "",
        "<br>".join(share),
        f"share {limit['share']:.0%}",
    ]


def goal(what: str, aim: str, reached: bool) -> str:
    """A goal and whether it was reached."""
    return f"{what} {aim}: {'met' if reached else '**missed**'}"


def missed(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each goal that was missed: by how much, and why."""
    size = " (quick sizes)" if result.get("quick") else ""
    for workload, one in unmet(result):
        found = f"{one['what']} is {one['found']:.3g}, the goal {one['goal']:.3g}"
        why = [reason for key, reason in REASONS.items() if explains(key, result["name"], workload, one["what"])]
        yield f"- `{result['name']}`{size}, {workload}: {found}. {' '.join(why) or 'Not explained yet.'}"


def unmet(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Workload and facts of every goal that was missed."""
    for case in result["cases"]:
        for one in case.get("goals_met", []):
            if not one["met"]:
                yield case["workload"], one


def explains(key: tuple[str, str, str], name: str, workload: str, what: str) -> bool:
    """Whether a reason is for this goal."""
    return key[0] == name and key[1] in workload and key[2] in what


def stale(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Reasons of contests that were measured and missed no such goal."""
    used = [(name, workload, one["what"]) for name, result in results.items() for workload, one in unmet(result)]
    return [key for key in REASONS if key[0] in results and not any(explains(key, *goal) for goal in used)]


def seconds(value: float) -> str:
    """Three digits, with the unit that suits."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def memory(value: float | None) -> str:
    """Megabytes."""
    return "" if value is None else f"{value:.0f} MB"


def main() -> int:
    """Write the page; 1 where a reason is given for a goal that was met."""
    files = sorted(RESULTS.glob("*.json"))
    found = {file.stem: json.loads(file.read_text()) for file in files if file.stem in CONTESTS}
    results = {name: result for name, result in found.items() if "quick" in result}  # older ones do not say their size
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"{PAGE}: {', '.join(results) or 'nothing measured'}")
    for name, workload, what in stale(results):
        print(
            f"benchmarks/tables.py gives a reason for {name}, {workload}, {what}: no such goal was missed; remove it",
            file=sys.stderr,
        )
    return 1 if stale(results) else 0


if __name__ == "__main__":
    sys.exit(main())
