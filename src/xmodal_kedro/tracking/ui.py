"""`python -m xmodal_kedro.tracking.ui` opens MLflow's pages on the project's runs, and Ctrl-C stops all of it.

MLflow's own `mlflow ui` starts four workers and a queue of background jobs, which take gigabytes; one worker does here.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from kedro.framework.project import settings
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project

from xmodal_kedro.tracking.store import (
    TrackingError,
    artifact_root,
    is_server,
    prepare,
    read_config,
    redacted,
    tracking_uri,
)

PAGE = "#/experiments?workflowType=machine_learning"  # else the pages open with prompts and judges
START = 120.0  # seconds that the server may take to answer
STOP = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted.

    Args:
        arguments: Of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m xmodal_kedro.tracking.ui", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--env", default=os.environ.get("KEDRO_ENV"), help="environment whose mlflow.yml counts")
    options = parser.parse_args(arguments)
    try:
        project = _project()
        uri = _uri(project, options.env)
        if is_server(uri):
            print(f"The runs are on a server, which has its own pages: {redacted(uri)}")
            return 0
        _check_port(options.host, options.port)
        prepare(uri, project)
        return serve(uri, project, options.host, options.port)
    except TrackingError as error:
        print(error, file=sys.stderr)
        return 1


def serve(uri: str, project: Path, host: str, port: int) -> int:
    """Run the server on a database until Ctrl-C, SIGTERM or its own end; no process of it is left behind."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--default-artifact-root", artifact_root(project), "--no-serve-artifacts"]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    signal.signal(signal.SIGTERM, _leave)
    server = subprocess.Popen(command, env={**os.environ, **quiet}, cwd=project, start_new_session=True)
    try:
        address = f"http://{host}:{port}"
        print(f"Starting MLflow on {redacted(uri)} ...", flush=True)
        if _answers(server, address):
            print(f"MLflow shows the runs at {address}/{PAGE} (Ctrl-C stops it)", flush=True)
        elif server.poll() is None:
            print(f"MLflow has not answered at {address} for {START:.0f} s; it may still come.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _answers(server: subprocess.Popen, address: str) -> bool:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False


def _stop(server: subprocess.Popen) -> None:
    """End the server's whole process group: its workers outlive their parent otherwise."""
    if server.poll() is None:
        _signal(server, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=STOP)
    if hasattr(signal, "SIGKILL"):
        _signal(server, signal.SIGKILL)
    server.wait()


def _signal(server: subprocess.Popen, number: signal.Signals) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(server.pid, number)
        else:
            server.send_signal(number)
    except ProcessLookupError:
        return


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _project() -> Path:
    project = find_kedro_project(Path.cwd())
    if project is None:
        raise TrackingError(f"{Path.cwd()} is not inside a Kedro project; change into the project first.")
    return Path(project)


def _uri(project: Path, env: str | None) -> str:
    bootstrap_project(project)
    loader = settings.CONFIG_LOADER_CLASS(
        conf_source=str(project / settings.CONF_SOURCE), env=env, **settings.CONFIG_LOADER_ARGS
    )
    return tracking_uri(read_config(loader), project)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Port {port} of {host} cannot be used ({error.strerror}): choose another --port."
            ) from None


if __name__ == "__main__":
    sys.exit(main())
