"""Start-up: `kedro registry list` here against an empty Kedro project made by `kedro new`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contest import Measured, Options, interleave, run_process

PROJECT = Path(__file__).parents[1]
KEDRO = str(Path(sys.executable).with_name("kedro"))
# Kedro-Viz and telemetry are installed for both sides; neither may be asked about consent.
QUIET = {"DO_NOT_TRACK": "true"}


def run(options: Options) -> list[dict[str, Any]]:
    """One case: ours may take at most 1.3 times the empty project."""
    with tempfile.TemporaryDirectory() as folder:
        new = [KEDRO, "new", "--name=empty", "--tools=none", "--example=n", "--telemetry=no"]
        run_process(new, Path(folder), QUIET)
        empty = Path(folder) / "empty"
        outputs: dict[str, str] = {}

        def listing(name: str, project: Path) -> Measured:
            measured, outputs[name] = run_process([KEDRO, "registry", "list"], project, QUIET)
            return measured

        measured = interleave(
            {
                "ours": lambda: listing("ours", PROJECT),
                "empty Kedro project": lambda: listing("empty", empty),
                "python -c pass": lambda: run_process([sys.executable, "-c", "pass"], PROJECT)[0],
            },
            repetitions=3 if options.quick else 9,
        )
    assert "train" in outputs["ours"], outputs["ours"]
    assert "__default__" in outputs["empty"], outputs["empty"]
    ours, peer, limit = measured["ours"], measured["empty Kedro project"], measured["python -c pass"]
    goal = 1 / 1.3
    ratio = peer.seconds / ours.seconds
    return [
        {
            "workload": "kedro registry list",
            "ours": {"seconds": ours.seconds, "peak_mb": ours.peak_mb},
            "peers": {
                "empty Kedro project": {
                    "seconds": peer.seconds,
                    "peak_mb": peer.peak_mb,
                    "ratio": ratio,
                    "goal": goal,
                    "memory_goal": None,
                    "agrees": "both list their pipelines",
                }
            },
            "limit": {"what": "python -c pass", "seconds": limit.seconds, "share": limit.seconds / ours.seconds},
            "goals_met": [
                {"what": "time of empty Kedro project over ours", "goal": goal, "found": ratio, "met": ratio >= goal}
            ],
            "passed": ratio >= goal,
        }
    ]
