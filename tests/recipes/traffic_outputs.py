"""Holds the submission of a finished traffic twin to the published format, and scores its texts and images slowly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.recipes.outputs import embeddings, latest


def check_submission(project: Path, recipe: str) -> None:
    """The one JSON object of CVPR 2023 track 2, answering `test_text.txt` line by line, best image first.

    Raises:
        AssertionError: It is not so.
    """
    test = project / f"data/01_raw/{recipe}_twin/test"
    queries = (test / "test_text.txt").read_text().splitlines()
    file = latest(project, "submission/submission.json").read_text()
    submission = json.loads(file)
    assert file.startswith('{\n    "results": [\n        {\n            "text": ')
    assert list(submission) == ["results"]
    results = submission["results"]
    assert [entry["text"] for entry in results] == [query.strip() for query in queries]
    ranking = ranked_names(project)
    text_ids = queries_of_test(project)["text_id"]
    for text_id, entry in zip(text_ids, results, strict=True):
        assert list(entry) == ["text", "image_names"]
        names = entry["image_names"]
        assert len(names) == len(set(names)) == 10
        assert all((test / "test_images" / name).is_file() for name in names)
        # Cars are called vehicle_<number>.jpg, pedestrians <number>.jpg.
        assert {name.startswith("vehicle_") for name in names} == {"pedestrian" not in entry["text"]}
        assert names == ranking[text_id]


def queries_of_test(project: Path) -> pd.DataFrame:
    """The rows of the queries, in the order of `test_text.txt`."""
    pairs = pd.read_parquet(latest(project, "pairs.parquet")).query("split == 'test'").dropna(subset=["text_id"])
    return pairs.sort_values("row", ignore_index=True)


def ranked_names(project: Path) -> dict[str, list[str]]:
    """File names by query, best first, as the ranking of test has them."""
    ranking = pd.read_parquet(latest(project, "ensemble/ranking.parquet"))
    ranking = ranking.query("split == 'test' and direction == 't2i'").sort_values("rank")
    names = ranking["gallery_id"].map(lambda image: Path(image).name)
    return names.groupby(ranking["query_id"]).agg(list).to_dict()


def cosines(project: Path, member: str, group: str) -> pd.DataFrame:
    """Cosines of the texts (rows) and images (columns) of a group of test, from the embeddings that were saved."""
    pairs = pd.read_parquet(latest(project, "pairs.parquet")).query("split == 'test' and group == @group")
    sides = {}
    for side in ("text", "image"):
        ids, matrix = embeddings(project, member, side)
        wanted = sorted(pairs[f"{side}_id"].dropna().unique())
        sides[side] = pd.DataFrame(matrix, index=ids).loc[wanted]
    scores: np.ndarray = sides["text"].to_numpy() @ sides["image"].to_numpy().T
    return pd.DataFrame(scores, index=sides["text"].index, columns=sides["image"].index)
