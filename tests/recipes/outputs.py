"""What a finished run of a twin has written, and its recalls again, slowly, from the embeddings that it saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.recipes.sizes import SMALL
from tests.recipes.twins import lay_out
from tests.reference.metrics import ranked, value


def run_twin(recipe: str, project: Path, **parameters: object) -> Path:
    """Run the small twin of a recipe end to end in a project of its own; returns the project's folder."""
    from tests.conftest import make_project, run_kedro

    make_project(project)
    lay_out(recipe, project, SMALL)
    given = ",".join(f"{key}={setting}" for key, setting in {"evaluation.bootstrap": 50, **parameters}.items())
    result = run_kedro(project, "run", f"--env={recipe}_twin", f"--params={given}")
    (project / "output.txt").write_text(result.stdout + result.stderr)
    return project


def latest(project: Path, dataset: str) -> Path:
    """The newest version of a dataset, by the end of its path without the version."""
    (folder,) = (path for path in (project / "data").rglob(dataset) if path.is_dir() and any(path.glob("20*")))
    return sorted(folder.glob("20*"))[-1] / Path(dataset).name


def embeddings(project: Path, member: str, side: str) -> tuple[list[str], np.ndarray]:
    """Ids and unit vectors [N, D] of one side of a member."""
    folder = latest(project, f"{member}/{side}_embeddings")
    matrix = np.load(folder / "matrix.npy").astype(np.float64)
    assert json.loads((folder / "meta.json").read_text())["side"] == side
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-3)
    return pd.read_parquet(folder / "ids.parquet").iloc[:, 0].tolist(), matrix


def slow_recalls(project: Path, member: str, split: str, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """`<direction>.recall_at_<k>` of a split over its full gallery; an equal sentence is right as well."""
    pairs = pd.read_parquet(latest(project, "pairs.parquet")).query("split == @split")
    text_of = pairs.dropna(subset=["text_id"]).set_index("text_id")["text"].to_dict()
    sentences_of = pairs.groupby("image_id")["text"].agg(set).to_dict()
    image_ids, images = embeddings(project, member, "image")
    text_ids, texts = embeddings(project, member, "text")
    columns = [i for i, image in enumerate(image_ids) if image in sentences_of]
    rows = [i for i, text in enumerate(text_ids) if text in text_of]
    right = [[text_of[text_ids[i]] in sentences_of[image_ids[j]] for j in columns] for i in rows]
    scores = texts[rows] @ images[columns].T
    recalls = {}
    for direction, table, truth in (("t2i", scores, right), ("i2t", scores.T, list(zip(*right, strict=True)))):
        lists = [ranked(list(row), list(relevant)) for row, relevant in zip(table, truth, strict=True)]
        for k in ks:
            recalls[f"{direction}.recall_at_{k}"] = float(np.mean([value(f"recall_at_{k}", one) for one in lists]))
    return recalls


def reported(metrics: pd.DataFrame, split: str) -> dict[str, float]:
    """`<direction>.<metric>` of a metric table of one group."""
    rows = metrics[(metrics["split"] == split) & (metrics["group"] == "all")]
    return {f"{row.direction}.{row.metric}": row.value for row in rows.itertuples()}
