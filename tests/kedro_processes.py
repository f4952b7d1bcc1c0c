"""Runs `kedro ...` again and again, each time in a new process that does not import the large libraries anew.

`python tests/kedro_processes.py` imports them once, then forks a process per line of its input, a request in JSON, and
answers with its exit status. The process is what `kedro` would have started, but for those libraries: its arguments,
folder, environment and output are its own, and it imports the code of the project that it is run in.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys

# Nothing of the project itself: every project of a test has its own copy of that.
LIBRARIES = (
    "kedro.framework.cli.cli",
    "kedro.framework.session",
    "kedro.runner",
    "kedro_datasets.pandas",
    "kedro_datasets.plotly",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "open_clip",
    "plotly.express",
    "scipy.optimize",
    "scipy.stats",
    "torchvision",
    "transformers",
)
SECONDS = 600


def become(command: list[str], folder: str, environment: dict[str, str], output: str, errors: str) -> None:
    """Take over the arguments, folder and environment of a command, and the files for what it prints."""
    signal.alarm(SECONDS)  # a command that hangs dies of it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_CREAT),
        (2, errors, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(file, flags), number)
    sys.stdin = open(0)  # noqa: SIM115 - the one before may have read the next requests
    sys.argv = command


def main() -> None:
    """Answer requests until there are no more; each one's process leaves the loop to be the command."""
    sys.path.pop(0)  # the folder of the tests, whose packages are called as libraries are
    for name in LIBRARIES:
        importlib.import_module(name)
    for request in iter(sys.stdin.readline, ""):
        process = os.fork()
        if process == 0:
            become(**json.loads(request))
            break
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    else:
        return
    from kedro.framework.cli.cli import main as kedro

    sys.exit(kedro())


if __name__ == "__main__":
    main()
