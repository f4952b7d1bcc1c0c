"""What a Kedro session writes to its runs: parameters, versions, fingerprints, metrics, figures, and the cost of nodes.

A value goes to the run of the member whose node it concerns, under the name that the member itself has for it:
`clip_a.train.lr` is `train.lr` in the run of `clip_a`. That is what makes the runs of members comparable.
"""

import logging
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from xmodal_kedro.tracking import entries
from xmodal_kedro.tracking.fingerprints import data_digest
from xmodal_kedro.tracking.progress import Progress, member_of
from xmodal_kedro.tracking.records import flat_params, metrics_of
from xmodal_kedro.tracking.runs import PARENT, RunTree, Status
from xmodal_kedro.tracking.sink import current_run
from xmodal_kedro.tracking.watch import NodeWatch

logger = logging.getLogger(__name__)


class TrackedSession:
    """Follows the nodes of one session; all methods may be called from the threads of a runner."""

    def __init__(self, runs: RunTree, progress: Progress, project: Path):
        """Nothing has begun.

        Args:
            runs: Of this session.
            progress: Of the pipeline; an empty one in a worker process, which cannot know when a member is finished.
            project: Root that shown paths are relative to.
        """
        self.runs = runs
        self._progress = progress
        self._project = project
        self._watches: dict[str, NodeWatch] = {}
        self._digests: dict[str, str] = {}

    def begin(self, node: Node) -> None:
        """A node loads its inputs: the run of its member exists from now on."""
        self._progress.begin(node)
        self.runs.of(member_of(node))

    def run(self, node: Node, catalog: CatalogProtocol, inputs: dict[str, Any]) -> None:
        """A node is about to run on its inputs: log them, and make the node's run the current one."""
        self.begin(node)
        member = member_of(node)
        for name, value in inputs.items():
            if name == "parameters" or name.startswith("params:"):
                self._log_params(member, name.removeprefix("params:"), value)
            else:
                self._log_input(member, catalog, name, value)
        run_id = self.runs.of(member)
        current_run.set(run_id)
        if run_id is not None:
            self._watches[node.name] = NodeWatch(run_id, self.runs.uri)

    def ran(self, node: Node) -> None:
        """The function of a node returned."""
        self._stop_watch(node)
        if self._progress.ran(node):
            self._finish(member_of(node))

    def failed(self, node: Node) -> None:
        """The function of a node raised. The pipeline's end says so to the runs, but for those of another process."""
        self._stop_watch(node)
        if not self.runs.is_owner and member_of(node) != PARENT:
            self.runs.fail(member_of(node))

    def saved(self, node: Node, catalog: CatalogProtocol, name: str, data: Any) -> None:
        """An output of a node is saved: log it; the last output of the last node of a member ends the member's run."""
        member = member_of(node)
        self._log_output(member, catalog, name, data)
        if self._progress.saved(node, name):
            self._finish(member)

    def end(self, status: Status) -> None:
        """The pipeline is over.

        With FAILED, members with a node under way have failed; other members that are not finished were only stopped by
        it and are KILLED.
        """
        current_run.set(None)
        for watch in self._watches.values():
            watch.stop()
        members: dict[str, Status] = {}
        if status == "FAILED":
            failed = self._progress.under_way()
            members = {member: "FAILED" if member in failed else "KILLED" for member in self._progress.members}
        self.runs.end_all(status, members)

    def _finish(self, member: str) -> None:
        if member != PARENT:
            self.runs.end(member, "FINISHED")

    def _stop_watch(self, node: Node) -> None:
        current_run.set(None)
        watch = self._watches.pop(node.name, None)
        if watch is not None:
            member = member_of(node)
            name = _within(node.name, member)
            self.runs.metrics(member, {f"node/{name}/{key}": value for key, value in watch.stop().items()})

    def _log_params(self, member: str, name: str, value: Any) -> None:
        if member and name == member:
            self.runs.params(member, flat_params(value))
        elif member and name.startswith(f"{member}."):
            self.runs.params(member, flat_params(value, _within(name, member)))
        else:
            self.runs.params(PARENT, flat_params(value, "" if name == "parameters" else name))

    def _log_input(self, member: str, catalog: CatalogProtocol, name: str, value: Any) -> None:
        short = _within(name, member)
        version = entries.loaded_version(catalog, name)
        tags = {} if version is None else {f"loaded_version.{short}": version}
        if entries.published(catalog, name).fingerprint:
            digest = self._digests.get(name) or data_digest(value, entries.location(catalog, name, version))
            if digest is not None:
                self._digests[name] = tags[f"fingerprint.{short}"] = digest
                self.runs.data(member, short, digest, self._place(catalog, name, version))
        self.runs.tags(member, tags)

    def _log_output(self, member: str, catalog: CatalogProtocol, name: str, data: Any) -> None:
        short = _within(name, member)
        published = entries.published(catalog, name)
        version = entries.saved_version(catalog, name)
        path = entries.location(catalog, name, version)
        tags = {} if version is None else {f"version.{short}": version}
        if published.path:
            tags[f"{short}_path"] = self._place(catalog, name, version)
        if published.fingerprint and (digest := data_digest(data, path)) is not None:
            self._digests[name] = tags[f"fingerprint.{short}"] = digest
        self.runs.tags(member, tags)
        if published.metrics:
            try:
                self.runs.metrics(member, metrics_of(data))
            except (TypeError, ValueError) as error:
                logger.warning("MLflow: catalog entry '%s' has no metrics to log: %s.", name, error)
        if published.artifact is not None and path is not None:
            self.runs.artifact(member, path, published.artifact)

    def _place(self, catalog: CatalogProtocol, name: str, version: str | None) -> str:
        """Where a dataset lies, relative to the project if it lies inside; its name if it is no local file."""
        path = entries.location(catalog, name, version)
        if path is None:
            return name
        path = self._project / path
        return path.relative_to(self._project).as_posix() if path.is_relative_to(self._project) else str(path)


def _within(name: str, member: str) -> str:
    """A name as the member itself calls it: `clip_a.checkpoint` is `checkpoint` in the run of clip_a."""
    return name.removeprefix(f"{member}.") if member else name
