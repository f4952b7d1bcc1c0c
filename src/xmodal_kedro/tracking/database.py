"""The sqlite database of a project's runs: created whole or not at all, and known to be writable before it is used.

MLflow builds a new database in place, table by table: two first runs at once, or one that is interrupted, would leave
half of one behind that nobody can use or repair. And it tries for minutes to open what cannot be opened.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

SQLITE = "sqlite:///"


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI; none for other stores and for one in memory."""
    path = uri.removeprefix(SQLITE)
    if path == uri or path in ("", ":memory:"):
        return None
    return Path(path.partition("?")[0])


def prepare(file: Path, artifacts: str) -> None:
    """Create the database if it is not there, and make sure that it can be written.

    Args:
        file: Of the database; missing folders are created.
        artifacts: URI of the folder for artifacts of experiments that do not name their own.

    Raises:
        OSError: Or `sqlite3.Error`, or MLflow's, where it cannot be created or written.
    """
    if not file.exists() or not file.stat().st_size:
        _create(file, artifacts)
    _check_writable(file)


def _create(file: Path, artifacts: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{uuid4().hex}.new")
    _check_writable(new)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        SqlAlchemyStore(SQLITE + new.as_posix(), artifacts).engine.dispose()
        if file.exists() and not file.stat().st_size:
            new.replace(file)
        else:
            _publish(new, file)
    finally:
        new.unlink(missing_ok=True)


def _publish(new: Path, file: Path) -> None:
    try:
        os.link(new, file)
    except FileExistsError:
        return  # another run was quicker
    except OSError:
        new.replace(file)  # a file system without hard links


def _check_writable(file: Path) -> None:
    with closing(sqlite3.connect(file, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA schema_version").fetchone()
