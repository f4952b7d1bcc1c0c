"""What every contest shares: interleaved repetitions, medians, and the result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """One repetition: wall seconds, and peak memory in MB where it was measured."""

    seconds: float
    peak_mb: float | None = None


@dataclass(frozen=True)
class Options:
    """How the contests of one call are run."""

    quick: bool = False
    device: str = "cpu"


def interleave(sides: Mapping[str, Callable[[], Measured]], repetitions: int) -> dict[str, Measured]:
    """Run every side once as a warm-up, then all of them in turn, and take medians.

    Interleaving (A B A B ...) gives each side the same share of whatever else the machine does.
    """
    for run in sides.values():
        run()
    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, run in sides.items():
            measured[name].append(run())
    return {name: _median(values) for name, values in measured.items()}


def run_process(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> tuple[Measured, str]:
    """Run a command to its end; wall time, peak resident memory of that process, and what it printed.

    Raises:
        RuntimeError: The command failed; the message ends with its output.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{output[-2000:]}")
    return Measured(seconds, usage.ru_maxrss / 1024), output


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def write(name: str, cases: list[dict[str, Any]]) -> bool:
    """Print a contest's cases and write them to `benchmarks/results/<name>.json`; true if every goal was met."""
    passed = all(case["passed"] for case in cases)
    RESULTS.mkdir(exist_ok=True)
    document = {"name": name, "machine": machine(), "passed": passed, "cases": cases}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2))
    for case in cases:
        ours = case["ours"]
        print(f"{name}: {case['workload']}")
        print(f"  {'ours':<28} {ours['seconds']:8.3f} s  {_mb(ours['peak_mb'])}")
        for peer, facts in case["peers"].items():
            print(
                f"  {peer:<28} {facts['seconds']:8.3f} s  {_mb(facts['peak_mb'])}  ratio {facts['ratio']:.2f} "
                f"(goal {facts['goal']:.2f})  {facts['agrees']}"
            )
        limit = case["limit"]
        print(f"  {limit['what']:<28} {limit['seconds']:8.3f} s  share {limit['share']:.0%}")
        print(f"  {'goal met' if case['passed'] else 'GOAL MISSED'}")
    return passed


def _mb(peak: float | None) -> str:
    return "      -   " if peak is None else f"{peak:7.0f} MB"


def _median(values: list[Measured]) -> Measured:
    peaks = [value.peak_mb for value in values if value.peak_mb is not None]
    return Measured(statistics.median(value.seconds for value in values), statistics.median(peaks) if peaks else None)
