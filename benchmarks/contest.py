"""What every contest shares: interleaved repetitions, peak memory in a process of its own, and the result file."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # goals that rest on bf16 hold where the CPU has one of them
SLOW = 20.0  # seconds; a peer that takes longer is run once
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


@dataclass(frozen=True)
class Goal:
    """What a peer must lose by.

    Attributes:
        ratio: Peer's seconds over ours must reach this; none where time is only reported.
        memory: Our peak over the peer's must not exceed this; none where memory is only reported.
    """

    ratio: float | None = None
    memory: float | None = None


def compete(
    workload: str,
    inputs: Callable[[], Any],
    sides: Mapping[str, Callable[[Any], Any]],
    agree: Callable[[dict[str, Any]], dict[str, str]],
    limit: tuple[str, Callable[[Any], Any]],
    goals: Mapping[str, Goal],
    *,
    share: float | None = None,
    peak_goal_mb: float | None = None,
    small: Callable[[], Any] | None = None,
    memory: bool = True,
    repetitions: int = 5,
    bf16: bool = False,
    parts: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One case of a contest; it tells how far it is on stderr.

    Every side is warmed up, on small inputs where there are any, then on the real ones (that output is what is
    compared); then all are timed in turn. A peer that takes more than 20 seconds has been timed by its run on the real
    inputs alone and is marked `once`. Peaks are measured in a new process for each side, above what it holds after
    imports, inputs and a run on small inputs.

    Args:
        workload: What is done to what, for the table.
        inputs: Makes the inputs; the same in every process. A module's function, or a partial of one.
        sides: Name to a function of the inputs, `ours` first. Modules' functions, or partials of them.
        agree: From all sides' outputs to a sentence per peer on how close they are; raises AssertionError if not.
        limit: What bounds any implementation on this machine, and a function of the inputs that does just that.
        goals: Of the peers.
        share: Goal for the share of the limit that we reach: its seconds over ours.
        peak_goal_mb: Goal for our own peak.
        small: Makes small inputs, for the warm-up of every side, here and in the processes that measure peaks.
        memory: Whether peaks are measured.
        repetitions: Of each side.
        bf16: Whether the goals of time and share rest on bf16; where the CPU has no instructions for it, they do not
            apply and the figures are only reported.
        parts: Share of the work that a side is given, where that is not all of it; its rate is compared.
    """
    if bf16 and not machine()["flags"]:
        goals, share = {name: Goal(memory=goal.memory) for name, goal in goals.items()}, None
    given = inputs()
    outputs: dict[str, Any] = {}
    first: dict[str, float] = {}
    runs = {**sides, limit[0]: limit[1]}
    for name, run in runs.items():
        _tell(workload, f"first run of {name}")
        if small is not None:
            run(small())
        first[name], outputs[name] = _timed(run, given)
        if first[name] > SLOW and name == "ours":  # it must not be judged by its first call
            first[name] = _timed(run, given)[0]
    agreement = agree({name: outputs[name] for name in sides})
    outputs.clear()
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions):
        _tell(workload, f"repetition {repetition + 1} of {repetitions}")
        for name, run in runs.items():
            if first[name] <= SLOW:
                times[name].append(_timed(run, given)[0])
    shares = dict.fromkeys(runs, 1.0) | dict(parts or {})
    seconds = {name: statistics.median(found or [first[name]]) / shares[name] for name, found in times.items()}
    del given
    gc.collect()
    _tell(workload, "memory of each" if memory else "done")
    peaks = {name: peak_mb(inputs, run, small) if memory else None for name, run in sides.items()}
    ours, bound = seconds["ours"], seconds[limit[0]]
    peers: dict[str, Any] = {}
    met: list[dict[str, Any]] = []

    def aim(what: str, found: float, goal: float | None, *, at_most: bool = False) -> None:
        if goal is not None:
            reached = found <= goal if at_most else found >= goal
            met.append({"what": what, "goal": goal, "found": found, "met": bool(reached)})

    aim("share of the limit", bound / ours, share)
    if peaks["ours"] is not None:
        aim("own peak, MB", peaks["ours"], peak_goal_mb, at_most=True)
    for name in [name for name in sides if name != "ours"]:
        goal = goals.get(name, Goal())
        ratio = seconds[name] / ours
        our_peak, peak = peaks["ours"], peaks[name]
        aim(f"time of {name} over ours", ratio, goal.ratio)
        if our_peak is not None and peak is not None:
            aim(f"our peak over that of {name}", our_peak / max(peak, 1e-9), goal.memory, at_most=True)
        peers[name] = {
            "seconds": seconds[name],
            "peak_mb": peak,
            "ratio": ratio,
            "goal": goal.ratio,
            "memory_goal": goal.memory,
            "agrees": agreement[name],
            "once": first[name] > SLOW,
        }
    return {
        "workload": workload,
        "ours": {"seconds": ours, "peak_mb": peaks["ours"], "peak_goal_mb": peak_goal_mb},
        "peers": peers,
        "limit": {"what": limit[0], "seconds": bound, "share": bound / ours, "share_goal": share},
        "goals_met": met,
        "passed": all(one["met"] for one in met),
    }


def peak_mb(
    inputs: Callable[[], Any], run: Callable[[Any], Any], small: Callable[[], Any] | None = None
) -> float | None:
    """Peak resident memory of `run(inputs())` above what the process holds before it; none where it cannot be read."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_report_peak, args=(sender, inputs, run, small))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError as error:
        process.join()
        raise RuntimeError(f"measuring the memory of {run} ended with exit code {process.exitcode}") from error
    finally:
        process.join()


def _report_peak(sender: Any, inputs: Callable[[], Any], run: Callable[[Any], Any], small: Any) -> None:
    if small is not None:
        run(small())
    given = inputs()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    kept = run(given)
    sender.send(_status_mb("VmHWM") - before)
    del kept


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _tell(workload: str, doing: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {workload}: {doing}", file=sys.stderr, flush=True)


def _timed(run: Callable[[Any], Any], given: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    output = run(given)
    return time.perf_counter() - start, output


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
    flags: list[str] = []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
        flags = [flag for flag in BF16_FLAGS if f" {flag} " in cpuinfo.read_text().replace("\n", " ")]
    return {
        "cpu": model,
        "flags": flags,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def write(name: str, cases: list[dict[str, Any]], *, quick: bool = False, load: float = 0.0) -> bool:
    """Print a contest's cases and write them to `benchmarks/results/<name>.json`; true if every goal was met.

    Args:
        name: Of the contest.
        cases: What it found.
        quick: Whether sizes were small.
        load: What else the machine was doing when it began: cores that were busy, over two seconds.
    """
    passed = all(case["passed"] for case in cases)
    RESULTS.mkdir(exist_ok=True)
    document = {"name": name, "machine": machine(), "quick": quick, "load": load, "passed": passed, "cases": cases}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2))
    for case in cases:
        ours = case["ours"]
        print(f"{name}: {case['workload']}")
        print(f"  {'ours':<28} {ours['seconds']:8.3f} s  {_mb(ours['peak_mb'])}{_peak_goal(ours)}")
        for peer, facts in case["peers"].items():
            goals = [f"goal {facts['goal']:.2f}"] if facts["goal"] is not None else []
            goals += [f"memory goal {facts['memory_goal']:.2f}"] if facts["memory_goal"] is not None else []
            goals += ["run once"] if facts.get("once") else []
            aims = f" ({', '.join(goals)})" if goals else ""
            print(
                f"  {peer:<28} {facts['seconds']:8.3f} s  {_mb(facts['peak_mb'])}  ratio {facts['ratio']:.2f}{aims}"
                f"  {facts['agrees']}"
            )
        limit = case["limit"]
        goal = f" (goal {limit['share_goal']:.0%})" if limit.get("share_goal") is not None else ""
        print(f"  {limit['what']:<28} {limit['seconds']:8.3f} s  share {limit['share']:.0%}{goal}")
        missed = [one["what"] for one in case.get("goals_met", []) if not one["met"]]
        met = "goals met" if case.get("goals_met") else "no goal for this"
        print(f"  {met if case['passed'] else 'GOAL MISSED: ' + '; '.join(missed)}", flush=True)
    return passed


def _peak_goal(ours: Mapping[str, Any]) -> str:
    return "" if ours.get("peak_goal_mb") is None else f" (goal {ours['peak_goal_mb']:.0f} MB)"


def _mb(peak: float | None) -> str:
    return "      -   " if peak is None else f"{peak:7.0f} MB"


def _median(values: list[Measured]) -> Measured:
    peaks = [value.peak_mb for value in values if value.peak_mb is not None]
    return Measured(statistics.median(value.seconds for value in values), statistics.median(peaks) if peaks else None)
