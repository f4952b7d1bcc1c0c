"""The MLflow runs of one `kedro run`: a parent, and one child per member, created when the member's first node begins.

Everything goes through the client with explicit run ids; MLflow's active-run stack is never used, so threads,
asynchronous saves and worker processes find their run. The ids are exported in an environment variable for processes
that nodes start. A store that fails once the parent is there costs warnings, never the run.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from xmodal_kedro.tracking.outage import store_outage
from xmodal_kedro.tracking.records import MAX_TAG, clean_key, cut
from xmodal_kedro.tracking.store import MANNERS, URI_VARIABLE, Store

RUNS_VARIABLE = "XMODAL_MLFLOW_RUNS"
PARENT = ""
Status = Literal["FINISHED", "FAILED", "KILLED"]

_BATCH = 100  # MLflow's limit for params or tags in one request


class RunTree:
    """Parent and children of one `kedro run`; the member ``""`` is the parent.

    Only the process that began the tree ends its runs. A worker process attaches to it and may write.
    """

    def __init__(self, store: Store, ids: dict[str, str], tags: Mapping[str, str]):
        """Use `begin` or `attach`."""
        self._store = store
        self._ids = ids
        self._tags = dict(tags)
        self._owner: int | None = None
        self._open: dict[str, str] = {}
        self._params: set[tuple[str, str]] = set()
        self._lock = threading.RLock()
        self._environment: dict[str, str | None] = {}

    @classmethod
    def begin(cls, store: Store, name: str, tags: Mapping[str, str]) -> "RunTree":
        """Create the parent run and export what other processes need to find it.

        Args:
            store: From `connect`.
            name: Run name of the parent.
            tags: Of the parent and of every child.

        Raises:
            Exception: MLflow's or the database's own, where the run cannot be created.
        """
        tree = cls(store, {}, tags)
        tree._owner = os.getpid()
        store_outage.forget()
        tree._create(PARENT, name)
        tree._export({URI_VARIABLE: store.uri, **{key: os.environ.get(key, value) for key, value in MANNERS.items()}})
        return tree

    @classmethod
    def attach(cls) -> "RunTree | None":
        """Find the tree of the process that started this one; none where there is none."""
        if not os.environ.get(RUNS_VARIABLE):
            return None
        from mlflow import MlflowClient

        uri = os.environ[URI_VARIABLE]
        return cls(Store(MlflowClient(tracking_uri=uri), "", uri), json.loads(os.environ[RUNS_VARIABLE]), {})

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._store.uri

    @property
    def is_owner(self) -> bool:
        """Whether this process began the tree."""
        return self._owner == os.getpid()

    def of(self, member: str) -> str | None:
        """Run id of a member, created at first use; none where the store fails."""
        with self._lock:
            if member not in self._ids:
                if not self.is_owner:
                    return self._ids.get(PARENT)
                store_outage.attempt(f"the run of {member}", partial(self._create, member, member))
            return self._ids.get(member)

    def params(self, member: str, params: Mapping[str, str]) -> None:
        """Log parameters that the run does not have yet."""
        from mlflow.entities import Param

        with self._lock:
            new = {key: value for key, value in params.items() if (member, key) not in self._params}
            self._params |= {(member, key) for key in new}
        for batch in _batches([Param(key, value) for key, value in new.items()], _BATCH):
            self._log(member, "parameters", params=batch)

    def metrics(self, member: str, metrics: Mapping[str, float]) -> None:
        """Log final numbers (step 0)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for batch in _batches([Metric(key, value, now, 0) for key, value in metrics.items()], 10 * _BATCH):
            self._log(member, "metrics", metrics=batch)

    def tags(self, member: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(clean_key(key), cut(value, MAX_TAG)) for key, value in tags.items()], _BATCH):
            self._log(member, "tags", tags=batch)

    def artifact(self, member: str, path: Path, folder: str) -> None:
        """Copy a file, or everything in a directory, into a folder of the run's artifacts."""
        run_id = self.of(member)
        if run_id is None:
            return
        if path.is_dir():
            write = partial(self._store.client.log_artifacts, run_id, str(path), f"{folder}/{path.name}")
        else:
            write = partial(self._store.client.log_artifact, run_id, str(path), folder)
        store_outage.attempt(str(path), write)

    def data(self, member: str, name: str, digest: str, source: str) -> None:
        """Record a dataset that the run was made from, with the digest of its content."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=json.dumps({"uri": source}))
        context = InputTag(key="mlflow.data.context", value="input")
        used = DatasetInput(dataset=dataset, tags=[context])
        run_id = self.of(member)
        if run_id is not None:
            store_outage.attempt(f"the dataset {name}", partial(self._store.client.log_inputs, run_id, [used]))

    def end(self, member: str, status: Status) -> None:
        """End a run that is still open; does nothing elsewhere than in the process that began it."""
        with self._lock:
            run_id = self._open.pop(member, None) if self.is_owner else None
        if run_id is not None:
            self._terminate(run_id, status)

    def fail(self, member: str) -> None:
        """Mark a member as failed from a worker process, which knows what its owner cannot."""
        run_id = self._ids.get(member)
        if run_id is not None:
            self._terminate(run_id, "FAILED")

    def end_all(self, status: Status, members: Mapping[str, Status] | None = None) -> None:
        """End the parent with `status`, and open children with theirs, or with the same where none is given.

        A child that a worker process has marked as failed stays so.
        """
        store_outage.forget()
        for member in [name for name in self._open if name != PARENT]:
            if not self._failed_elsewhere(member):
                self.end(member, (members or {}).get(member, status))
        self.end(PARENT, status)
        if self.is_owner:
            self._restore()

    def _create(self, member: str, name: str) -> None:
        tags = dict(self._tags)
        if member != PARENT:
            tags |= {"mlflow.parentRunId": self._ids[PARENT], "member": member}
        tags = {key: cut(value, MAX_TAG) for key, value in tags.items()}
        run = self._store.client.create_run(self._store.experiment_id, tags=tags, run_name=name)
        self._ids[member] = self._open[member] = run.info.run_id
        self._export({RUNS_VARIABLE: json.dumps(self._ids)})

    def _failed_elsewhere(self, member: str) -> bool:
        found = []
        store_outage.attempt("a question", lambda: found.append(self._store.client.get_run(self._open[member])))
        return any(run.info.status == "FAILED" for run in found)

    def _terminate(self, run_id: str, status: Status) -> None:
        store_outage.attempt("the status", partial(self._store.client.set_terminated, run_id, status=status))

    def _log(self, member: str, what: str, **batch: Any) -> None:
        run_id = self.of(member)
        if run_id is not None:
            store_outage.attempt(what, partial(self._store.client.log_batch, run_id, **batch))

    def _export(self, variables: Mapping[str, str]) -> None:
        for key, value in variables.items():
            self._environment.setdefault(key, os.environ.get(key))
            os.environ[key] = value

    def _restore(self) -> None:
        for key, value in self._environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        self._environment.clear()


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
