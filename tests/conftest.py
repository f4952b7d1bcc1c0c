"""A small project of its own for tests that run commands: same code and base config, everything small."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# Property tests look for new cases on a developer's machine, and repeat the same ones where a red run blocks others.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Where Python is told to keep nothing compiled, each of the many processes that tests start would compile all that it
# imports again, for seconds. They share a folder instead; the tree stays as clean as is asked for.
if sys.dont_write_bytecode:
    _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = _COMPILED.name
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Random weights that a library draws by itself are the same in each run, whichever tests ran before, and others in each
# test and fixture: what fails can be repeated, and does not fail elsewhere alone.


def _seed(name: str) -> None:
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    _seed(f"{fixturedef.argname} {request.node.nodeid}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed(item.nodeid)


REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
Kedro = Callable[..., subprocess.CompletedProcess[str]]

# Small enough for seconds, large enough that what is learned can be told from chance.
SMALL = {
    "synthetic.train": 1200,
    "synthetic.val": 240,
    "synthetic.test": 80,
    "vit.train.epochs": 4,
    "resnet.train.epochs": 2,
    "evaluation.bootstrap": 200,
}


def small_parameters(**changes: object) -> str:
    """The `--params` of a small run."""
    return "--params=" + ",".join(f"{key}={value}" for key, value in {**SMALL, **changes}.items())


def make_project(folder: Path) -> Path:
    """A project folder with this repository's code and configuration, and no data."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks")
    # Kedro wants the sources below the project; a link would lead out of it.
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_kedro(
    project: Path, *arguments: str, check: bool = True, as_user: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `kedro ...` in a project folder, and show its output when it fails although it should not.

    It runs in a new process that is forked where the large libraries are imported already; `as_user` starts the command
    itself, which takes seconds more.
    """
    command = [str(Path(sys.executable).with_name("kedro")), *arguments]
    # What a developer has set must not leak into the run.
    inherited = {key: value for key, value in os.environ.items() if key not in ("KEDRO_ENV", "MLFLOW_TRACKING_URI")}
    if as_user:
        result = subprocess.run(
            command, cwd=project, env={**inherited, **env}, capture_output=True, text=True, timeout=600
        )
    else:
        result = _fork_kedro(command, project, {**inherited, **env})
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


def _fork_kedro(command: list[str], project: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    server = _kedro_processes()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        request = {"command": command, "folder": str(project), "environment": env}
        server.stdin.write(json.dumps(request | {"output": str(output), "errors": str(errors)}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


@cache
def _kedro_processes() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("kedro_processes.py")
    server = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # the last one first
    return server


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the small main job has run once; tests may run more in it, but delete nothing."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    result = run_kedro(project, "run", small_parameters(), as_user=True)
    (project / "output.txt").write_text(result.stdout + result.stderr)
    return project
