"""A member is finished when the last output of its last node is saved, in whatever order a runner takes."""

from collections.abc import Iterator

from kedro.pipeline import Node

from xmodal_kedro.tracking.progress import Progress, member_of


def work(value: int) -> int:
    return value


def pieces(value: int) -> Iterator[int]:
    yield value


def two(value: int) -> tuple[int, int]:
    return value, value


def nothing(value: int) -> None:
    assert value


TRAIN = Node(two, "x", ["a.checkpoint", "a.history"], name="train", namespace="a.inner")
SHOW = Node(nothing, "a.checkpoint", None, name="show", namespace="a")
OTHER = Node(work, "x", "b.checkpoint", name="train", namespace="b")
FREE = Node(work, "x", "y", name="make")
STREAM = Node(pieces, "x", "s.out", name="stream", namespace="s")


def test_a_member_is_the_root_of_the_namespace() -> None:
    assert [member_of(node) for node in (TRAIN, SHOW, OTHER, FREE)] == ["a", "a", "b", ""]


def test_the_last_saved_output_finishes_a_member() -> None:
    progress = Progress([TRAIN, OTHER, FREE])
    assert progress.members == ["a", "b"]
    for node in (TRAIN, OTHER):
        progress.begin(node)
    assert not progress.ran(TRAIN)
    assert not progress.saved(TRAIN, "a.history")
    assert progress.under_way() == {"a", "b"}
    assert progress.saved(TRAIN, "a.checkpoint")
    assert progress.under_way() == {"b"}
    assert progress.saved(OTHER, "b.checkpoint")
    assert progress.under_way() == set()


def test_a_node_without_outputs_is_finished_when_it_returns() -> None:
    progress = Progress([TRAIN, SHOW])
    progress.begin(SHOW)
    assert not progress.ran(SHOW)
    progress.begin(TRAIN)
    progress.saved(TRAIN, "a.checkpoint")
    assert progress.saved(TRAIN, "a.history")


def test_a_node_that_saves_in_pieces_is_not_called_finished_by_the_first() -> None:
    progress = Progress([STREAM])
    progress.begin(STREAM)
    assert not progress.saved(STREAM, "s.out")
    assert progress.under_way() == {"s"}
