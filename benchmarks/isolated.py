"""One contest in a process of its own; how it ended is the exit code of the command."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
import traceback

import psutil

from benchmarks.contest import Options, write

MET, MISSED, BROKEN = 0, 1, 2
UNMET = 64  # what the process says for MISSED: Python itself exits with 1 where nobody caught an error


def in_process(name: str, options: Options, place: str) -> int:
    """Run a contest in a new process.

    Args:
        name: Of the contest.
        options: How to run it.
        place: Which of how many it is, for the reader.

    Returns:
        `MET`, `MISSED` or `BROKEN`.
    """
    print(f"{name} ({place}) ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=contest, args=(name, options))
    process.start()
    process.join()
    print(f"{name} took {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return {0: MET, UNMET: MISSED}.get(process.exitcode, BROKEN)


def contest(name: str, options: Options) -> None:
    """What the new process does."""
    load = psutil.cpu_percent(interval=2.0) / 100 * (os.cpu_count() or 1)
    try:
        cases = importlib.import_module(f"benchmarks.{name}").run(options)
        met = write(name, cases, quick=options.quick, load=load)
    except Exception as error:
        traceback.print_exc()
        module = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and module not in ("benchmarks", "xmodal_kedro"):
            print(f"{name} needs the package of '{module}': run `uv sync --group bench` first", file=sys.stderr)
        sys.exit(BROKEN)
    sys.exit(0 if met else UNMET)
