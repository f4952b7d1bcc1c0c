"""`python -m xmodal_kedro` is `kedro run` of this project."""

import sys
from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main() -> None:
    """Run the project with the arguments of `kedro run`."""
    configure_project(Path(__file__).parent.name)
    find_run_command(Path(__file__).parent.name)(sys.argv[1:])


if __name__ == "__main__":
    main()
