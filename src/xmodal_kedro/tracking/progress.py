"""Which nodes are under way and which members are done, told from the order in which Kedro calls its hooks.

Kedro has no hook for "this node is finished": a node is, once it has run and each of its outputs is saved.
"""

import inspect
import threading
from collections.abc import Iterable

from kedro.pipeline.node import Node


def member_of(node: Node) -> str:
    """The member that a node belongs to, the root of its namespace; ``""`` outside of any."""
    return (node.namespace or "").partition(".")[0]


class Progress:
    """The state of a pipeline's nodes; safe to use from the threads of a runner."""

    def __init__(self, nodes: Iterable[Node]):
        """Nothing has begun."""
        self._left: dict[str, set[str]] = {}
        for node in nodes:
            self._left.setdefault(member_of(node), set()).add(node.name)
        self._unsaved: dict[str, set[str]] = {}
        self._members: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def members(self) -> list[str]:
        """The members of the pipeline, in the order of their first nodes."""
        return [member for member in self._left if member]

    def begin(self, node: Node) -> None:
        """A node loads its inputs, or runs."""
        with self._lock:
            if node.name not in self._unsaved:
                self._unsaved[node.name] = set(node.outputs)
                self._members[node.name] = member_of(node)

    def ran(self, node: Node) -> bool:
        """A node's function returned. Says whether that finishes its member, as it does without outputs."""
        return not node.outputs and self._finish(node)

    def saved(self, node: Node, dataset: str) -> bool:
        """An output is saved. Says whether that finishes the member of the node."""
        if inspect.isgeneratorfunction(node.func):
            return False  # saves in pieces, and only the end of the pipeline tells that no piece follows
        with self._lock:
            unsaved = self._unsaved.get(node.name, set())
            unsaved.discard(dataset)
        return not unsaved and self._finish(node)

    def under_way(self) -> set[str]:
        """Members with a node that began and did not finish; ``""`` for a node outside of any member."""
        with self._lock:
            return set(self._members.values())

    def _finish(self, node: Node) -> bool:
        member = member_of(node)
        with self._lock:
            self._unsaved.pop(node.name, None)
            self._members.pop(node.name, None)
            left = self._left.get(member, set())
            left.discard(node.name)
            return not left
