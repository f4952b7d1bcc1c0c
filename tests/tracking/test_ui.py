"""The command that shows the runs serves them, and Ctrl-C leaves no process of it behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOY, tmp_path / "toy", ignore=shutil.ignore_patterns("__pycache__")))


def start(project: Path, *arguments: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "xmodal_kedro.tracking.ui", *arguments],
        cwd=project / "conf",
        env={**{key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_serves_with_one_worker_and_stops_wholly(project: Path) -> None:
    server = start(project, "--port", str(free_port()))
    assert server.stdout is not None
    address = None
    seen = []
    for line in server.stdout:
        seen.append(line)
        if found := re.search(r"MLflow shows the runs at (\S+)", line):
            address = found[1]
            break
    assert address is not None, "".join(seen)
    with urllib.request.urlopen(address) as page:
        assert b"MLflow" in page.read()
    assert (project / "mlflow.db").exists()
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) <= 3
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=20) == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_port_in_use_is_said_at_once(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = start(project, "--port", str(other.getsockname()[1]))
        assert "choose another --port" in server.communicate(timeout=30)[0]
    assert server.returncode == 1


def test_runs_on_a_server_are_shown_by_the_server(project: Path) -> None:
    server = start(project, MLFLOW_TRACKING_URI="http://me:secret@tracking:5000")
    output = server.communicate(timeout=30)[0]
    assert "http://***@tracking:5000" in output
    assert server.returncode == 0
