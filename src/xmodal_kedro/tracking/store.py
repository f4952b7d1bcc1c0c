"""Where runs are remembered: `mlflow.yml`, the tracking URI, and a connection that works or fails with one clear error.

Importing this module does not import MLflow: that takes seconds, and only a pipeline that runs needs it.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kedro.config import AbstractConfigLoader, MissingConfigException
from pydantic import Field, ValidationError

from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.tracking import database
from xmodal_kedro.tracking.database import SQLITE, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"

# What holds during a run unless the user has said otherwise: a server that went away costs seconds, not the minutes of
# MLflow's own settings, and MLflow prints no address each time that a run ends.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(RuntimeError):
    """MLflow cannot be used as configured; the message says where and what to do."""


class TrackingConfig(Frozen):
    """The keys of `conf/base/mlflow.yml`."""

    enabled: bool = Field(True, description="false runs everything without MLflow")
    experiment: str = Field("xmodal-kedro", min_length=1)
    tracking_uri: str | None = Field(
        None, description=f"where ${URI_VARIABLE} is not set; none is sqlite:///mlflow.db in the project"
    )


@dataclass(frozen=True)
class Store:
    """An open connection: the client, and the experiment that runs go to."""

    client: "MlflowClient"
    experiment_id: str
    uri: str


def read_config(loader: AbstractConfigLoader) -> TrackingConfig:
    """Read `mlflow.yml` of the active environment; a project without one has the defaults.

    Raises:
        TrackingError: Naming the key that is unknown or of the wrong type.
    """
    try:
        raw = loader["mlflow"]
    except MissingConfigException:
        raw = {}
    except KeyError as error:
        raise TrackingError(
            "settings.py: CONFIG_LOADER_ARGS['config_patterns'] must name 'mlflow', as ['mlflow*', 'mlflow*/**']."
        ) from error
    try:
        return TrackingConfig.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(TrackingConfig.model_fields)
        raise TrackingError(f"mlflow.yml, key '{key}': {first['msg']}. The keys are: {known}.") from None


def tracking_uri(config: TrackingConfig, project: Path) -> str:
    """The URI of the store: the environment variable, else the config, else sqlite inside the project.

    A relative sqlite path is taken from the project's root, so that every working directory and process means one file.
    """
    uri = os.environ.get(URI_VARIABLE) or config.tracking_uri or f"{SQLITE}mlflow.db"
    file = sqlite_file(uri)
    if file is not None and not file.is_absolute():
        uri = SQLITE + (project / file).as_posix()
    return uri


def artifact_root(project: Path) -> str:
    """Where the artifacts of a database store lie, as a URI."""
    return (project / "mlruns").as_uri()


def is_server(uri: str) -> bool:
    """Whether a tracking server answers at this URI, which then owns database and artifacts."""
    return uri.startswith(("http://", "https://"))


def redacted(uri: str) -> str:
    """The URI without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def connect(uri: str, experiment: str, project: Path) -> Store:
    """Open the store and find or create the experiment.

    Args:
        uri: The tracking URI, from `tracking_uri`.
        experiment: Name of the experiment.
        project: Root of the project; artifacts of a database store go to its `mlruns/`.

    Raises:
        TrackingError: Naming the URI, the reason, and how to switch tracking off.
    """
    with _explained(uri), _mannerly():
        prepare(uri, project)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, experiment, None if is_server(uri) else artifact_root(project))
    return Store(client, experiment_id, uri)


def prepare(uri: str, project: Path) -> None:
    """Create the database of a sqlite URI if it is not there; other stores are left to themselves.

    Raises:
        TrackingError: As `connect`.
    """
    # Read by MLflow when it is imported; it logs every step of a database's creation otherwise.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    file = sqlite_file(uri)
    if file is not None:
        with _explained(uri):
            database.prepare(file, artifact_root(project))


def failures() -> tuple[type[BaseException], ...]:
    """The errors by which MLflow says that it could not read or write: its own, the database's, the network's."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


@contextmanager
def _mannerly() -> Iterator[None]:
    missing = {key: value for key, value in MANNERS.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            del os.environ[key]


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except failures() as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise TrackingError(
            f"MLflow cannot be used at {redacted(uri)}: {redacted(reason)}. Correct ${URI_VARIABLE} or 'tracking_uri' "
            "in conf/base/mlflow.yml, start the server if it is one, or set 'enabled: false' there to run untracked."
        ) from None


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            # Another run created it in between.
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise MlflowException(f"the experiment '{name}' was deleted: restore it, or choose another name in mlflow.yml")
    return str(found.experiment_id)
