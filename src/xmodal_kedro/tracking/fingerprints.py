"""What a run was made from: the commit of the code, the command, and digests of data."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_kedro.data.manifest import MANIFEST, fingerprint, read_manifest

UNKNOWN = "unknown"

_SELECTION = (
    "tags", "node_names", "from_nodes", "to_nodes", "from_inputs", "to_outputs", "namespaces", "load_versions"
)  # fmt: skip


def run_tags(project: Path, run_params: Mapping[str, Any]) -> dict[str, str]:
    """Tags of every run of a session: user, source, commit, command, environment, and what part of the pipeline ran.

    Args:
        project: Root of the project.
        run_params: From Kedro's `before_pipeline_run`.
    """
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags

    git = git_state(project)
    # MLflow's own look at git warns where there is none.
    tags: dict[str, str] = resolve_tags(ignore=[GitRunContext])  # type: ignore[list-item]
    tags |= {
        "git.commit": git["commit"],
        "git.dirty": git["dirty"],
        "kedro.command": command_line(),
        "kedro.version": str(run_params["kedro_version"]),
        "kedro.session": str(run_params["run_id"]),
        "kedro.env": str(run_params.get("env") or "base"),
        "kedro.pipelines": ", ".join(sorted(run_params.get("pipeline_names") or ["default"])),
        "kedro.params": _json(run_params.get("runtime_params") or {}),
    }
    if git["commit"] != UNKNOWN:
        tags["mlflow.source.git.commit"] = git["commit"]
    return tags | {f"kedro.{key}": _json(run_params[key]) for key in _SELECTION if run_params.get(key)}


def git_state(project: Path) -> dict[str, str]:
    """Commit of the project and whether files differ from it (`true`, `false`).

    Files that git does not know and does not ignore count as a difference: a new recipe decides what a run does.

    Returns:
        `commit` and `dirty`; `unknown` without git or outside a repository.
    """
    commit = _git(project, "rev-parse", "HEAD")
    changes = _git(project, "status", "--porcelain") if commit is not None else None
    return {
        "commit": commit or UNKNOWN,
        "dirty": UNKNOWN if changes is None else str(bool(changes)).lower(),
    }


def command_line() -> str:
    """The command that started this process, as a user would type it."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def data_digest(data: Any, path: Path | None = None) -> str | None:
    """Digest of a dataset's content, 16 hex digits; none where the kind of data has no cheap digest.

    Args:
        data: A DataFrame (columns and values count, in order; the index does not), an object that carries its own
            `fingerprint`, or plain mappings and lists.
        path: Where the data lies; of a sealed artifact directory, whatever it loads to, the manifest is taken.
    """
    if path is not None and (path / MANIFEST).is_file():
        return fingerprint(read_manifest(path)["files"])[:16]
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _table_digest(data)
    own = getattr(data, "fingerprint", None)
    if isinstance(own, str):
        return own[:16]
    if isinstance(data, Mapping | list):
        return fingerprint(data)[:16]
    return None


def _table_digest(table: Any) -> str:
    from pandas.util import hash_pandas_object

    columns = {}
    for column in table.columns:
        values = table[column]
        # Cells of mixed or unhashable types are compared by their text.
        values = values.astype(str) if values.dtype == object else values
        columns[str(column)] = fingerprint(hash_pandas_object(values, index=False).to_numpy().tobytes().hex())
    return fingerprint([list(columns), columns])[:16]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _git(project: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(project), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
