"""Code and data are told apart by what they are, and where nothing can be told, that is said."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from xmodal_kedro.data.manifest import seal
from xmodal_kedro.tracking.fingerprints import command_line, data_digest, git_state

UNKNOWN = {"commit": "unknown", "dirty": "unknown"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("data\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": "false"}
    (tmp_path / "data").write_text("ignored")
    assert git_state(tmp_path) == clean
    (tmp_path / "recipe.yml").write_text("new")
    assert git_state(tmp_path) == {**clean, "dirty": "true"}


def test_without_a_repository_or_a_commit_or_git_the_state_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) == UNKNOWN
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == UNKNOWN
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == UNKNOWN


@pytest.mark.parametrize("program", ["/bin/kedro", "/lib/kedro/__main__.py"])
def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("sys.argv", [program, "run", "--params=a=b c"])
    assert command_line() == "kedro run '--params=a=b c'"


def table() -> pd.DataFrame:
    return pd.DataFrame({"image_id": ["a", None], "text": ["x", "y"], "row": [1, 2]})


def test_tables_with_the_same_content_have_the_same_digest() -> None:
    digest = data_digest(table())
    assert digest is not None
    assert len(digest) == 16
    assert data_digest(table().set_axis([7, 9])) == digest
    changed = [
        table().rename(columns={"text": "caption"}),
        table().assign(row=[1, 3]),
        table().assign(image_id=[None, "a"]),
        table()[["text", "image_id", "row"]],
        table().iloc[::-1],
        table().iloc[:1],
    ]
    assert len({data_digest(other) for other in changed} | {digest}) == len(changed) + 1


def test_cells_of_any_type_count() -> None:
    lists = pd.DataFrame({"captions": [["a", "b"], None]})
    assert data_digest(lists) == data_digest(lists.copy())
    assert data_digest(lists) != data_digest(pd.DataFrame({"captions": [["a"], None]}))


def test_a_sealed_directory_is_known_by_its_manifest(tmp_path: Path) -> None:
    digests = []
    for name, content in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
        seal(tmp_path / name, "checkpoint")
        digests.append(data_digest(object(), tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_data_without_a_cheap_digest_has_none(tmp_path: Path) -> None:
    assert data_digest(object(), tmp_path) is None
    assert data_digest({"b": 1, "a": 2}) == data_digest({"a": 2, "b": 1})
