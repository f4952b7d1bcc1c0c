"""Run a function in several processes that train together, and bring back what rank 0 returns, or one clear error.

torch's own launcher starts them from inside of the calling process, one per GPU, or on the CPU. They find each other on
localhost; nothing but the function's name and its plain data travels to them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.losses.gather import rank
from xmodal_kedro.training.device import count_processes, pick_device

Job = TypeVar("Job")
Result = TypeVar("Result")

_LAUNCHERS = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.multiprocessing.spawn",
    "torchelastic-events-null",
)
# Others wait while rank 0 evaluates. A process that dies ends them all at once, so waiting needs no other limit.
_PATIENCE = timedelta(days=7)
_GRACE = 10.0  # seconds


class ProcessError(RuntimeError):
    """One of several processes failed; the message is that of its error, its traceback is a note."""


def launch(function: Callable[[Job], Result], job: Job, runtime: RuntimeConfig) -> Result:
    """Call `function(job)` in as many processes as `runtime` says, each with its rank in one process group.

    With a single process it is called here and now, without any process group.

    Args:
        function: Of a module, so that a new process can import it.
        job: Can be pickled: configs, tables, paths.
        runtime: Its `processes`, `device` and `threads`.

    Returns:
        What the function returned in the process of rank 0.

    Raises:
        ProcessError: The error of the process that failed first; the others were ended.
        ValueError: There are fewer GPUs than processes.
    """
    count = count_processes(runtime)
    if count == 1:
        return function(job)
    with TemporaryDirectory(prefix="xmodal-processes-") as folder, _own_signals(), _quiet():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any port that is free
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method="spawn",  # a forked process cannot use a GPU that this one has used
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            results: dict[int, Result] = elastic_launch(config, _work)(function, job, runtime, folder)
        except ChildFailedError as error:
            raise _first_error(Path(folder), error, count) from None
    return results[0]


def _work(function: Callable[[Job], Result], job: Job, runtime: RuntimeConfig, folder: str) -> Result | None:
    """One process, from the start to the end of its group."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by the launching process; here it ends, no more
    try:
        if runtime.threads is None:  # torch would give every process all cores
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
        dist.init_process_group("gloo" if runtime.device == "cpu" else _backend(), timeout=_PATIENCE)
        if (device := pick_device(runtime)).type == "cuda":
            torch.cuda.set_device(device)
        result = function(job)
    except Exception as error:
        if "by peer" in str(error):  # gloo's word for a process that is gone: what it died of is the error to tell
            time.sleep(_GRACE)  # until this process is ended too
        told = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        Path(folder, f"{time.time_ns()}-{os.environ['RANK']}.json").write_text(json.dumps(told))
        raise
    first = rank() == 0
    dist.destroy_process_group()
    return result if first else None


def _backend() -> str:
    # Flags that are on the CPU travel by gloo: there a wait for rank 0 blocks no GPU.
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _first_error(folder: Path, error: ChildFailedError, count: int) -> ProcessError:
    """The error that came first: after it the others fail too, for they miss the one that is gone."""
    if files := sorted(folder.glob("*-*.json")):
        told = json.loads(files[0].read_text())
        number = int(files[0].stem.split("-")[1])
        failed = ProcessError(f"{told['message']} (process {number + 1} of the {count} that train together)")
        failed.add_note(told["traceback"])
        return failed
    number, failure = error.get_first_failure()
    return ProcessError(
        f"process {number + 1} of the {count} that train together ended without an error of its own: "
        f"{failure.message}. A signal 9 is mostly the system's answer to too little memory"
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give back the signal handlers that the launcher takes, and hand a signal on to them that ended it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
    handlers = {number: signal.getsignal(number) for number in numbers}
    ended_by: signal.Signals | None = None
    try:
        yield
    except SignalException as error:
        ended_by = error.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if ended_by is not None:
        signal.raise_signal(ended_by)  # by default Ctrl-C is KeyboardInterrupt from here on
        raise InterruptedError(f"training was ended by {ended_by.name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher's account of starts and failures out of the log: failures are raised, and that is enough."""

    def no(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in _LAUNCHERS]
    for logger in loggers:
        logger.addFilter(no)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(no)
