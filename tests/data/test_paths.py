"""No path leaves the root, and the fast look-up finds what one stat per row finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import paths as reference
from xmodal_kedro.data.paths import ImageTree, PathError, confine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("paths")
    (base / "secret").mkdir()
    (base / "secret" / "x.jpg").touch()
    (base / "x.jpg").touch()
    root = base / "root"
    (root / "photos" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "c", "c.jpg", "deep/d.jpeg", "deep/e f.jpg", "图.jpg", "000055.jpg", "v1.2.png"):
        (root / "photos" / name).touch()
    (root / "photos" / "inside.jpg").symlink_to(root / "photos" / "a.jpg")
    (root / "photos" / "outside.jpg").symlink_to(base / "secret" / "x.jpg")
    (root / "photos" / "dangling.jpg").symlink_to(root / "nothing.jpg")
    (root / "photos" / "loop").symlink_to(root / "photos" / "loop")
    (root / "photos" / "way_out").symlink_to(base / "secret")
    (root / "photos" / "way_in").symlink_to(root / "photos" / "deep")
    return root


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("../x.jpg", "'..'"),
        ("deep/../../../x.jpg", "'..'"),
        ("..\\x.jpg", "'..'"),
        ("..", "'..'"),
        ("/etc/passwd", "absolute"),
        ("\\\\server\\share\\x.jpg", "absolute"),
        ("C:\\x.jpg", "drive letter"),
        ("c:x.jpg", "drive letter"),
        ("a\0.jpg", "NUL"),
        ("https://example.org/a.jpg", "URL"),
        ("", "empty"),
        (".", "empty"),
        ("outside.jpg", "symlink that leaves"),
        ("way_out/x.jpg", "symlink that leaves"),
        ("dangling.jpg", "symlink to no file"),
        ("loop", "symlink to no file"),
        ("deep", "does not exist"),
        ("no.jpg", "does not exist"),
        ("no/no.jpg", "folder does not exist"),
        ("a.jpg/b.jpg", "folder does not exist"),
        ("s.parquet::0::bytes", "Parquet shard"),
    ],
)
def test_refused_with_a_reason(root: Path, value: str, reason: str) -> None:
    found = ImageTree(root).find(value, "photos")
    assert found.reason is not None
    assert reason in found.reason


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a.jpg", "photos/a.jpg"),
        ("./deep//d.jpeg", "photos/deep/d.jpeg"),
        ("deep\\d.jpeg", "photos/deep/d.jpeg"),
        ("deep/../a.jpg", "photos/a.jpg"),
        ("000055", "photos/000055.jpg"),
        ("b", "photos/b.PNG"),
        ("c", "photos/c"),
        ("v1.2", "photos/v1.2.png"),
        ("图.jpg", "photos/图.jpg"),
        ("inside.jpg", "photos/inside.jpg"),
        ("way_in/d.jpeg", "photos/way_in/d.jpeg"),
    ],
)
def test_found(root: Path, value: str, path: str) -> None:
    assert ImageTree(root).find(value, "photos") == (path, None)


def test_the_root_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    tree = ImageTree(tmp_path / "link")
    assert tree.find("photos/a.jpg").reason is None
    assert tree.find("photos/outside.jpg").reason is not None


def test_folders(root: Path) -> None:
    tree = ImageTree(root)
    assert tree.find_folder(".") == ("", None)
    assert tree.find_folder("./photos/") == ("photos", None)
    assert tree.find_folder("nothing").reason == "folder does not exist under data.root"
    assert "'..'" in str(tree.find_folder("../secret").reason)
    assert "symlink" in str(tree.find_folder("photos/way_out").reason)


PARTS = ["", ".", "..", "a.jpg", "a", "deep", "d.jpeg", "way_out", "way_in", "x.jpg", "outside.jpg", "C:", "loop", "\0"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=5), st.sampled_from(["/", "\\"]), st.sampled_from(["", "photos"]))
def test_the_fast_way_agrees_with_one_stat_per_row(root: Path, parts: list[str], slash: str, folder: str) -> None:
    value = slash.join(parts)
    found = ImageTree(root).find(value, folder)
    assert (found.path if found.reason is None else None) == reference.find(root, value, folder)


@settings(max_examples=200, deadline=None)
@given(st.text("./\\ab:\0", max_size=12))
def test_confined_paths_never_climb(value: str) -> None:
    try:
        path = confine(value)
    except PathError:
        return
    assert os.path.normpath(os.path.join("/data", path)).startswith("/data/")


def test_a_folder_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(place) or scandir(place))
    tree = ImageTree(root)
    for number in range(1000):
        tree.find(f"photos/deep/{number}.jpg")
    assert len(listed) == len(set(listed)) == 3
