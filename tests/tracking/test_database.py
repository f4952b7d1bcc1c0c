"""A new database is whole from the moment that it is there."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking import sqlalchemy_store

from xmodal_kedro.tracking.database import prepare


def is_usable(file: Path) -> bool:
    return [found.name for found in MlflowClient(f"sqlite:///{file}").search_experiments()] == ["Default"]


def test_of_two_first_runs_the_slower_one_takes_the_database_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "runs" / "mlflow.db"

    class Slower(sqlalchemy_store.SqlAlchemyStore):
        def __init__(self, uri: str, artifacts: str):
            super().__init__(uri, artifacts)
            shutil.copy(uri.removeprefix("sqlite:///"), file)
            (tmp_path / "inode").write_text(str(file.stat().st_ino))

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", Slower)
    prepare(file, "file:///a")
    monkeypatch.undo()
    prepare(file, "file:///a")
    assert file.stat().st_ino == int((tmp_path / "inode").read_text())
    assert is_usable(file)
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def half(uri: str, artifacts: str) -> None:
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        connection.execute("CREATE TABLE experiments (name TEXT)")
        connection.commit()
        connection.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", half)
    return monkeypatch.undo


def test_a_first_run_that_is_interrupted_leaves_nothing_half_made(
    tmp_path: Path, interrupted: Callable[[], None]
) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    with pytest.raises(KeyboardInterrupt):
        prepare(file, "file:///a")
    interrupted()
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("mlflow.db", 0)]
    prepare(file, "file:///a")
    assert is_usable(file)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("the only copy of something")
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        prepare(file, "file:///a")
    assert file.read_text() == "the only copy of something"
