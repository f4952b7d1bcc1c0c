"""`python -m benchmarks [NAME ...] [--quick] [--device cpu|cuda]`: run contests, print tables, write JSON.

A contest is a module of this package with `run(options) -> list of cases`.
"""

import argparse
import importlib
import sys

from benchmarks.contest import Options, write

CONTESTS = ("startup", "full_size", "ranks", "assign", "rerank", "search", "fuse", "weights", "hubness")


def main() -> int:
    """Run the contests that are named, or all; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTESTS)}; none runs all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CONTESTS]
    if unknown:
        parser.error(f"there is no contest '{unknown[0]}'; there are: {', '.join(CONTESTS)}")
    options = Options(quick=arguments.quick, device=arguments.device)
    results = [
        write(name, importlib.import_module(f"benchmarks.{name}").run(options)) for name in arguments.names or CONTESTS
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
