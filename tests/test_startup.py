"""Listing pipelines is cheap: none of the heavy libraries is imported, and the environment chooses the members."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import make_project, run_kedro

HEAVY = ["torch", "torchvision", "transformers", "open_clip", "timm", "mlflow", "pandas", "scipy", "sklearn", "plotly"]


def test_kedro_registry_list_imports_nothing_heavy() -> None:
    code = (
        "import sys, json\n"
        "sys.argv = ['kedro', 'registry', 'list']\n"
        "from kedro.framework.cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *listed, heavy = result.stdout.splitlines()
    assert "- train" in listed
    assert json.loads(heavy) == []


def test_kedro_env_chooses_the_members_where_there_is_no_env_option(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project / "conf/one").mkdir()
    (project / "conf/one/parameters.yml").write_text("member_names: [vit]\n")
    both = run_kedro(project, "registry", "describe", "train").stdout
    one = run_kedro(project, "registry", "describe", "train", KEDRO_ENV="one").stdout
    assert "vit.train_member" in both
    assert "resnet.train_member" in both
    assert "vit.train_member" in one
    assert "resnet" not in one


def test_telemetry_is_declined() -> None:
    assert (Path(__file__).parents[1] / ".telemetry").read_text().strip() == "consent: false"
