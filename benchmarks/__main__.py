"""`python -m benchmarks [NAME ...] [--quick] [--device cpu|cuda]`: run contests, print tables, write JSON.

A contest is a module of this package with `run(options) -> list of cases`. Each runs in a process of its own: what one
leaves behind (the state of an allocator, thread settings, loaded libraries) cannot touch the next.

Exit code: 0 if every goal was met, 1 if one was missed, 2 if a contest could not be run.
"""

import argparse
import os
import sys

from benchmarks.contest import Options
from benchmarks.isolated import BROKEN, MISSED, in_process

CONTESTS = ("startup", "full_size", "ranks", "assign", "rerank", "search", "fuse", "weights", "hubness", "decode")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main() -> int:
    """Run the contests that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTESTS)}; none runs all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CONTESTS]
    if unknown:
        parser.error(f"there is no contest '{unknown[0]}'; there are: {', '.join(CONTESTS)}")
    for variable in THREADS:  # every library of every side has the same number of threads
        os.environ.setdefault(
            variable, str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        )
    names = list(dict.fromkeys(arguments.names or CONTESTS))
    options = Options(quick=arguments.quick, device=arguments.device)
    codes = {name: in_process(name, options, f"{place} of {len(names)}") for place, name in enumerate(names, start=1)}
    for code, what in ((MISSED, "missed a goal"), (BROKEN, "could not be run")):
        if found := [name for name in names if codes[name] == code]:
            print(f"{what}: {', '.join(found)}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
