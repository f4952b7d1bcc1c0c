"""The twin of A3R end to end: missing attributes completed before training, queries in a form of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.recipes.outputs import latest, run_twin
from tests.recipes.tables import loaded
from tests.recipes.traffic import TRAFFIC
from tests.recipes.traffic_outputs import check_submission, cosines, queries_of_test

pytestmark = pytest.mark.skipif(not TRAFFIC.is_dir(), reason="the traffic crops are not beside the repository")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic_a3r") / "project"
    return run_twin("traffic_a3r", folder, **{"bigg.train.epochs": 1})


@pytest.fixture(scope="module")
def captions(project: Path) -> pd.DataFrame:
    return pd.read_parquet(latest(project, "05_model_input/captions.parquet"))


@pytest.fixture(scope="module")
def completed(project: Path) -> pd.DataFrame:
    return pd.read_parquet(latest(project, "completed_attributes.parquet"))


def test_the_submission_is_as_published(project: Path) -> None:
    check_submission(project, "traffic_a3r")


@pytest.mark.parametrize("group", ["vehicle", "pedestrian"])
def test_images_are_ranked_by_cosine(project: Path, group: str) -> None:
    scores = cosines(project, "bigg", group)
    ranking = pd.read_parquet(latest(project, "ensemble/ranking.parquet"))
    ranking = ranking.query("split == 'test' and direction == 't2i' and group == @group").sort_values("rank")
    assert set(ranking["query_id"]) == set(scores.index)
    for query, found in ranking.groupby("query_id"):
        best = np.sort(scores.loc[query].to_numpy())[::-1][: len(found)]
        assert scores.loc[query, found["gallery_id"].tolist()].to_numpy() == pytest.approx(best, abs=1e-5)


def test_missing_colours_and_types_are_completed_and_brands_are_not(
    captions: pd.DataFrame, completed: pd.DataFrame
) -> None:
    vehicles = captions.query("split == 'train' and group == 'vehicle'")
    assert set(completed["text_id"]) == set(vehicles["text_id"]), "no phrase of these crops has a colour"
    colors = loaded("traffic_a3r")["prompts"]["vocabulary"]["colors"]
    assert completed["color"].isin(colors).all()
    assert completed["type"].notna().all()
    assert completed["brand"].isna().any()
    assert not completed["completed"].str.contains("brand").any()
    attributes = completed["text_id"].map(vehicles.set_index("text_id")["attributes"])
    known = ~completed["completed"].str.contains("type")
    assert known.any()
    assert not known.all()
    for phrase, kind in zip(attributes[known], completed.loc[known, "type"], strict=True):
        assert kind in phrase


def test_train_captions_of_vehicles_are_the_completed_words_alone(
    captions: pd.DataFrame, completed: pd.DataFrame
) -> None:
    texts = captions.query("split == 'train'").set_index("text_id")["text"]
    for row in completed.itertuples():
        words = [part for part in (row.color, row.brand, row.type) if isinstance(part, str)]
        assert texts[row.text_id] == " ".join(words)
    people = captions.query("split == 'train' and group == 'pedestrian'")
    assert (people["text"] == people["pair_text"]).all()
    assert (people["text_id"] == people["origin"]).all(), "no row of its own for a sentence"


def test_queries_are_encoded_without_their_beginning_and_end(project: Path, captions: pd.DataFrame) -> None:
    encoded = captions.set_index("text_id")["text"]
    groups = set()
    for query in queries_of_test(project).itertuples():
        groups.add(query.group)
        bare = query.text.removesuffix(".")
        if query.group == "vehicle":
            beginning = "This is an " if bare.startswith("This is an ") else "This is a "
            assert bare.startswith(beginning)
            bare = bare.removeprefix(beginning)
        assert encoded[query.text_id] == bare
    assert groups == {"vehicle", "pedestrian"}
