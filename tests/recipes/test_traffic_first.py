"""The twin of the winner of track 2 end to end: four members, fused in equal parts, the first ten in a new order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.recipes.outputs import latest, run_twin
from tests.recipes.traffic import TRAFFIC
from tests.recipes.traffic_outputs import check_submission, cosines, queries_of_test, ranked_names

pytestmark = pytest.mark.skipif(not TRAFFIC.is_dir(), reason="the traffic crops are not beside the repository")

MEMBERS = ["clip_h_full", "clip_h_locked", "clip_xlmr", "blip_large"]
TOP = 10


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic_first") / "project"
    return run_twin("traffic_first", folder, **{f"{member}.train.epochs": 1 for member in MEMBERS})


@pytest.fixture(scope="module")
def reranking(project: Path) -> pd.DataFrame:
    table = pd.read_parquet(latest(project, "ensemble/reranking.parquet"))
    return table[table["split"] == "test"].sort_values(["query_id", "first_rank"], ignore_index=True)


def test_the_submission_is_as_published(project: Path) -> None:
    check_submission(project, "traffic_first")


@pytest.mark.parametrize("group", ["vehicle", "pedestrian"])
def test_candidates_are_the_first_of_four_equal_parts_normalised_by_row(
    project: Path, reranking: pd.DataFrame, group: str
) -> None:
    parts = []
    for member in MEMBERS:
        scores = cosines(project, member, group)
        parts.append(scores / np.linalg.norm(scores.to_numpy(), axis=1, keepdims=True))
    fused = sum(parts[1:], parts[0]) / len(parts)
    of_group = reranking[reranking["group"] == group]
    assert set(of_group["query_id"]) == set(fused.index)
    for query, candidates in of_group.groupby("query_id"):
        expected = np.sort(fused.loc[query].to_numpy())[::-1][:TOP]
        assert candidates["fused"].to_numpy() == pytest.approx(expected, abs=1e-4)
        by_hand = fused.loc[query, candidates["gallery_id"].tolist()].to_numpy()
        assert candidates["fused"].to_numpy() == pytest.approx(by_hand, abs=1e-4)
    fusion = json.loads(latest(project, "ensemble/fusion.json").read_text())
    assert fusion["weights"] == dict.fromkeys(MEMBERS, 0.25)


def test_the_matching_head_orders_the_candidates_and_leaves_none_out(project: Path, reranking: pd.DataFrame) -> None:
    ranking = ranked_names(project)
    for query, candidates in reranking.groupby("query_id"):
        logits = candidates["second"].to_numpy()
        score = candidates["fused"].to_numpy() + logits / np.linalg.norm(logits)
        assert candidates["score"].to_numpy() == pytest.approx(score, abs=1e-4)
        assert sorted(candidates["rank"]) == list(range(1, len(candidates) + 1))
        in_new_order = candidates.sort_values("rank")
        assert (in_new_order["score"].diff().dropna() <= 1e-6).all()
        assert ranking[query] == [Path(image).name for image in in_new_order["gallery_id"]]


def test_the_published_order_which_is_that_of_the_first_stage_differs(project: Path, reranking: pd.DataFrame) -> None:
    """There the number of candidates was the rank of the process, 0, so that nothing was put in a new order."""
    assert (reranking["rank"] != reranking["first_rank"]).any()
    submitted = ranked_names(project)
    published = reranking["gallery_id"].map(lambda image: Path(image).name).groupby(reranking["query_id"]).agg(list)
    differing = [query for query, names in published.items() if submitted[query] != names]
    assert len(differing) > len(published) / 2
    assert all(sorted(submitted[query]) == sorted(published[query]) for query in published.index)


def test_clips_train_on_sentences_and_blip_on_what_is_said_of_vehicles(project: Path) -> None:
    shared = pd.read_parquet(latest(project, "05_model_input/captions.parquet"))
    own = pd.read_parquet(latest(project, "blip_large/train_captions.parquet"))
    for table, sentences in ((shared, True), (own, False)):
        people = table[(table["split"] == "train") & (table["group"] == "pedestrian")]
        assert (people["text_id"] != people["origin"]).any() == sentences
    vehicles = own[(own["split"] == "train") & (own["group"] == "vehicle")]
    assert vehicles["text"].str.contains("This is a vehicle.", regex=False).all()
    audi = vehicles[vehicles["attributes"].str.contains("Audi")]
    assert audi["text"].str.endswith("This is a vehicle. The brand of the vehicle is Audi.").any()
    plain = shared[(shared["split"] == "train") & (shared["group"] == "vehicle")]
    of_audi = plain[plain["attributes"].str.contains("Audi")]
    made = of_audi.groupby("origin")["text"].agg(list)
    brand = "The brand of the vehicle is Audi."  # the crops have no colours, so no sentence about one
    texts = of_audi.drop_duplicates("origin").set_index("origin")["pair_text"]
    assert all(rows == [texts[origin], brand, f"{texts[origin]} {brand}"] for origin, rows in made.items())
    asked = shared[shared["split"] == "test"].dropna(subset=["text_id"])
    assert set(asked["text"]) == set(queries_of_test(project)["text"])


def test_weights_are_those_of_directories_in_the_layouts_of_the_hub(project: Path) -> None:
    models = project / "data/01_raw/traffic_first_twin/models"
    clip = {"open_clip_config.json", "open_clip_model.safetensors"}
    transformers = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    files = {directory.name: {file.name for file in directory.iterdir()} for directory in models.iterdir()}
    assert files == {
        "clip-h": clip,
        "clip-xlmr": clip | transformers,
        "blip": transformers | {"model.safetensors", "vocab.txt", "preprocessor_config.json"},
    }
    ours = json.loads((latest(project, "clip_xlmr/checkpoint") / "tokenizer.json").read_text())
    theirs = json.loads((models / "clip-xlmr/tokenizer.json").read_text())
    assert ours["model"]["type"] == theirs["model"]["type"] == "Unigram"
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
