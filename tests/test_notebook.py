"""The quickstart notebook runs from top to bottom on a finished run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY


def test_quickstart_runs_on_a_finished_run(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(REPOSITORY / "notebooks/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    # The kernel must see the project's own copy of the code, as a user's does.
    monkeypatch.setenv("PYTHONPATH", str(finished_project / "src"))
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(finished_project / "notebooks")}}
    ).execute()
    shown = "\n".join(
        "".join(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "ensemble" in shown
    assert "map_at_10" in shown
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
