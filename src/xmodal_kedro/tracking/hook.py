"""Kedro's side of tracking: opens a session's runs when a pipeline runs, passes events on, and ends them in any case.

Importing this module does not import MLflow, so commands that run nothing stay quick.
"""

import logging
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from xmodal_kedro.tracking.entries import published
from xmodal_kedro.tracking.fingerprints import run_tags
from xmodal_kedro.tracking.interruption import Interruption
from xmodal_kedro.tracking.progress import Progress
from xmodal_kedro.tracking.runs import PARENT, RunTree, Status
from xmodal_kedro.tracking.session import TrackedSession
from xmodal_kedro.tracking.store import TrackingConfig, TrackingError, connect, failures, read_config, redacted
from xmodal_kedro.tracking.store import tracking_uri as uri_of

# Runners whose nodes run in this process; processes of others cannot tell each other which runs they have created.
_IN_PROCESS = ("SequentialRunner", "ThreadRunner", "None")

logger = logging.getLogger(__name__)


class TrackingHook:
    """One parent run per `kedro run`, one child run per member. Sessions of a process follow one another."""

    def __init__(self) -> None:
        """Tracks nothing yet."""
        self._config: TrackingConfig | None = None
        self._project = Path()
        self._session: TrackedSession | None = None
        self._catalog: CatalogProtocol | None = None
        self._interruption: Interruption | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read `mlflow.yml`."""
        self._project = Path(context.project_path)
        self._config = read_config(context.config_loader)

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Create the parent run, after every other hook has had its say against this run.

        Raises:
            TrackingError: If the store cannot be used, or a catalog entry asks for something unknown.
        """
        self._end("KILLED")  # of a session that was interrupted in a process that lives on, such as a notebook
        if self._config is None or not self._config.enabled:
            return
        for dataset in sorted(pipeline.datasets()):
            published(catalog, dataset)
        store = connect(uri_of(self._config, self._project), self._config.experiment, self._project)
        progress = Progress(pipeline.nodes)
        tags = run_tags(self._project, run_params)
        try:
            runs = RunTree.begin(store, f"{tags['kedro.pipelines']} ({tags['kedro.env']})", tags)
        except failures() as error:
            raise TrackingError(f"MLflow at {redacted(store.uri)} refuses a run: {error}") from error
        runs.tags(PARENT, {"members": ", ".join(progress.members)})
        self._catalog = catalog
        self._session = TrackedSession(runs, progress, self._project)
        self._interruption = Interruption(lambda: self._end("KILLED"))
        self._interruption.watch()
        if not any(runner in str(run_params.get("runner")) for runner in _IN_PROCESS):
            for member in progress.members:
                runs.of(member)
        logger.info("Tracked in MLflow at %s, run %s", redacted(store.uri), runs.of(PARENT))

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """A node begins."""
        if self._session is not None:
            self._session.begin(node)

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol, inputs: dict[str, Any]) -> None:
        """Log parameters and loaded versions."""
        self._attach()
        if self._session is not None:
            self._catalog = catalog
            self._session.run(node, catalog, inputs)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Log what the node cost."""
        if self._session is not None:
            self._session.ran(node)

    @hook_impl
    def on_node_error(self, node: Node) -> None:
        """Stop measuring."""
        if self._session is not None:
            self._session.failed(node)

    @hook_impl(trylast=True)
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Log the saved version and what the catalog says about it."""
        if self._session is not None and self._catalog is not None:
            self._session.saved(node, self._catalog, dataset_name, data)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Everything ran."""
        self._end("FINISHED")

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Something failed; Torch's launcher turns Ctrl-C and SIGTERM into an ordinary exception of the name below."""
        self._end("KILLED" if type(error).__name__ == "SignalException" else "FAILED")

    def _attach(self) -> None:
        """In a worker process that was not forked nothing but the node's own hooks has been called before."""
        if self._session is None and self._config is None and (runs := RunTree.attach()) is not None:
            self._session = TrackedSession(runs, Progress([]), Path.cwd())

    def _end(self, status: Status) -> None:
        session, self._session, self._catalog = self._session, None, None
        if self._interruption is not None:
            self._interruption.forget()
            self._interruption = None
        if session is not None:
            session.end(status)
