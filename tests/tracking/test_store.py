"""The store that a project means is found from every working directory, and said without its password."""

from pathlib import Path

import pytest

from xmodal_kedro.tracking.store import TrackingConfig, redacted, tracking_uri

PROJECT = Path("/projects/mine")


@pytest.mark.parametrize(
    ("variable", "configured", "expected"),
    [
        (None, None, "sqlite:////projects/mine/mlflow.db"),
        (None, "sqlite:///runs/all.db", "sqlite:////projects/mine/runs/all.db"),
        (None, "sqlite:////elsewhere/all.db", "sqlite:////elsewhere/all.db"),
        (None, "http://server:5000", "http://server:5000"),
        ("http://server:5000", "sqlite:///runs/all.db", "http://server:5000"),
        ("", "postgresql://server/runs", "postgresql://server/runs"),
        ("sqlite:///mine.db", None, "sqlite:////projects/mine/mine.db"),
    ],
)
def test_the_environment_comes_first_and_relative_files_lie_in_the_project(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, configured: str | None, expected: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert tracking_uri(TrackingConfig(tracking_uri=configured), PROJECT) == expected


def test_messages_show_no_password() -> None:
    assert redacted("postgresql://me:secret@server/runs") == "postgresql://***@server/runs"
    assert redacted("sqlite:////a/b@c/mlflow.db") == "sqlite:////a/b@c/mlflow.db"
