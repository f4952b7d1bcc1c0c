"""Live curves: a callback for pure training code that brings its numbers to the MLflow run of the node it runs in.

    with metric_sink() as report:
        train(..., report=report)      # report(step, {"loss": 1.2, "lr": 1e-4})

Reports are written in batches, so a fast loop does not wait for the database at each step. Without tracking the
callback does nothing and imports nothing. A store that fails costs a warning, and its numbers wait for the next try.
"""

import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

from xmodal_kedro.tracking.outage import store_outage
from xmodal_kedro.tracking.records import clean_key
from xmodal_kedro.tracking.runs import PARENT, RUNS_VARIABLE
from xmodal_kedro.tracking.store import URI_VARIABLE

if TYPE_CHECKING:
    from mlflow.entities import Metric, RunTag

INTERVAL = 1.0  # seconds between writes
_BATCH = 1000  # MLflow's limit for metrics in one request
_KEPT = 100_000  # numbers that wait while a store fails; older ones are dropped

current_run: ContextVar[str | None] = ContextVar("current_run", default=None)

logger = logging.getLogger(__name__)


def metric_sink(member: str = PARENT) -> "MetricSink":
    """The sink of the run that this code belongs to.

    In a node (any thread of a runner) it is the node's run. A process or thread that a node starts has no current run:
    it names its member, and the ids come from the environment.

    Args:
        member: Whose run, where there is no current one; ``""`` is the parent.
    """
    run_id = current_run.get()
    if run_id is None and os.environ.get(RUNS_VARIABLE):
        run_id = json.loads(os.environ[RUNS_VARIABLE]).get(member)
    return MetricSink(run_id)


class MetricSink:
    """Collects `report(step, numbers)` and writes at most once per `INTERVAL`; leaving its context writes the rest."""

    def __init__(self, run_id: str | None):
        """With no run id every report is ignored."""
        self._run_id = run_id
        self._metrics: deque[Metric] = deque(maxlen=_KEPT)
        self._tags: list[RunTag] = []
        self._nonfinite: set[str] = set()
        self._next_write = 0.0
        self._lock = threading.Lock()
        if run_id is not None:
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=os.environ[URI_VARIABLE])

    def __enter__(self) -> "MetricSink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Report numbers of a step.

        A number that is not finite has no place in a curve: the tag ``nonfinite.<name>`` says when it first was.

        Args:
            step: Counted by the caller, from 0 or 1.
            numbers: Name to value; anything that `float` takes, also one-element tensors.
        """
        if self._run_id is None:
            return
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        with self._lock:
            for name, number in numbers.items():
                key, value = clean_key(name), float(number)
                if math.isfinite(value):
                    self._metrics.append(Metric(key, value, now, step))
                elif key not in self._nonfinite:
                    self._nonfinite.add(key)
                    self._tags.append(RunTag(f"nonfinite.{key}", f"{value} at step {step}"))
            if time.monotonic() >= self._next_write:
                self._write()

    def flush(self) -> None:
        """Write what has been reported so far."""
        with self._lock:
            if self._metrics or self._tags:
                store_outage.forget()
                self._write()
            if self._metrics:
                logger.warning("MLflow lacks the last %d reported numbers.", len(self._metrics))

    def _write(self) -> None:
        self._next_write = time.monotonic() + INTERVAL
        while self._run_id is not None and (self._metrics or self._tags):
            batch = list(islice(self._metrics, _BATCH))
            write = partial(self._client.log_batch, self._run_id, metrics=batch, tags=self._tags)
            if not store_outage.attempt("reported numbers", write):
                if not store_outage.holds:
                    self._run_id = None  # refused, as for a run that somebody deleted: no use to try again
                return
            self._tags = []
            for _ in batch:
                self._metrics.popleft()
