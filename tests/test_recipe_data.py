"""A recipe that completes attributes, replaces train texts, puts queries its own way and lets a member differ."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import make_project, run_kedro, small_parameters
from xmodal_kedro.datasets.directory import MANIFEST

RECIPE = {
    "completion": {"member": "vit", "parts": ["color", "type"]},
    "prompts": {
        "groups": {
            "vehicle": {
                "replace": "This is a {color} {brand} {type}.",
                "query": {"strip_prefixes": ["A ", "This is a ", "An ", "This is an "], "strip_end": "."},
            }
        }
    },
    "resnet": {
        "prompts": {
            "vehicle": {"append": ["The color of the vehicle is {color}."], "rows": ["A vehicle."], "separator": ""}
        }
    },
}
SMALL = small_parameters(
    **{"resnet.train.epochs": 1, "synthetic.train": 300, "synthetic.val": 60, "synthetic.test": 40}
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which such a recipe has trained the member with prompts of its own."""
    project = make_project(tmp_path_factory.mktemp("recipe") / "project")
    (project / "conf/local").mkdir()
    (project / "conf/local/parameters.yml").write_text(yaml.safe_dump(RECIPE))
    result = run_kedro(project, "run", "--to-nodes=resnet.train_member", SMALL)
    (project / "output.txt").write_text(result.stdout + result.stderr)
    return project


def read(project: Path, dataset: str) -> pd.DataFrame:
    (file,) = project.glob(f"data/*/{dataset}.parquet/*/*.parquet")
    return pd.read_parquet(file)


def test_missing_parts_are_completed_and_said(project: Path) -> None:
    completed, captions = read(project, "completed_attributes"), read(project, "captions")
    assert len(completed) > 5
    assert completed["completed"].isin(["color", "type", "color type"]).all()
    assert completed[["color", "type"]].notna().all().all()
    assert completed["score"].between(-1, 1).all()
    said = captions.set_index("text_id")["text"]
    for row in completed.itertuples():
        brand = f"{row.brand} " if isinstance(row.brand, str) else ""
        assert said[row.text_id] == f"This is a {row.color} {brand}{row.type}."
    vehicles = captions[(captions["split"] == "train") & (captions["group"] == "vehicle")]
    assert vehicles["text"].str.match(r"This is a \w+ .*\w\.$").all()


def test_queries_lose_their_prefix_and_submissions_do_not(project: Path) -> None:
    captions = read(project, "captions")
    asked = captions[(captions["split"] != "train") & (captions["group"] == "vehicle")].dropna(subset=["text"])
    assert set(asked["split"]) == {"dev", "val", "test"}
    assert not asked["text"].str.match(r"(A|An|This is an?) ").any()
    assert not asked["text"].str.endswith(".").any()
    assert asked["pair_text"].str.match(r"(A|An|This is an?) ").any()
    came = read(project, "pairs").set_index("text_id")["text"]
    assert (asked["pair_text"].to_numpy() == came[asked["text_id"]].to_numpy()).all()


def test_a_member_with_prompts_trains_on_them(project: Path) -> None:
    own, captions = read(project, "resnet/train_captions"), read(project, "captions")
    train = own[own["split"] == "train"]
    vehicles = train[(train["group"] == "vehicle") & (train["text"] != "A vehicle.")]
    color = vehicles["text"].str.extract(r"The color of the vehicle is ([a-z ]+)\.$")[0]
    assert color.notna().all(), "completed where the phrase has none"
    assert (vehicles["text"] == vehicles["pair_text"] + "The color of the vehicle is " + color + ".").all()
    assert f"resnet: {len(train)} pairs on" in (project / "output.txt").read_text()
    assert len(train) > (captions["split"] == "train").sum()
    pd.testing.assert_frame_equal(
        own[own["split"] != "train"].reset_index(drop=True),
        captions[captions["split"] != "train"].reset_index(drop=True),
    )
    assert len(list(project.glob(f"data/06_models/*/checkpoint/*/checkpoint/{MANIFEST}"))) == 1


def test_only_members_with_prompts_have_captions_of_their_own() -> None:
    from xmodal_kedro.pipelines.train.pipeline import create_pipeline

    plain = create_pipeline("vit")
    assert plain.inputs() == {
        *("captions", "images", "params:vit", "params:evaluation", "params:relevance", "params:runtime")
    }
    own = create_pipeline("vit", own_prompts=True)
    assert own.inputs() - plain.inputs() == {"pairs", "params:prompts"}
    completing = create_pipeline("vit", own_prompts=True, completing=True)
    assert completing.inputs() - own.inputs() == {"completed_attributes"}
    assert create_pipeline("vit", completing=True).inputs() == plain.inputs()


def test_a_second_run_completes_nothing_again(project: Path) -> None:
    assert "by vit before training" in (project / "output.txt").read_text()
    result = run_kedro(project, "run", "--pipelines=data_processing", SMALL)
    assert "as completed by an earlier run" in result.stdout + result.stderr
    assert len(list(project.glob(f"data/03_primary/completions/*/{MANIFEST}"))) == 1


def test_a_missing_sample_file_ends_the_run_before_it_begins(project: Path) -> None:
    parameters = SMALL + ",ensemble.submission.template=sample.csv"
    result = run_kedro(project, "run", "--pipelines=ensemble", parameters, check=False)
    assert result.returncode != 0
    assert "ensemble.submission.template: there is no file" in result.stdout + result.stderr


def test_the_sample_file_is_filled_in_for_the_split_that_is_submitted(tmp_path: Path) -> None:
    from xmodal_kedro.config.data import DataConfig
    from xmodal_kedro.config.ensemble import EnsembleConfig
    from xmodal_kedro.pipelines.ensemble.nodes import write_predictions, write_submission

    (tmp_path / "sample.csv").write_text("idx,image\n2,?\n1,?\n")
    source = {"split": "test", "format": "table", "file": "texts.csv", "columns": {"image": None, "text_id": "idx"}}
    data = DataConfig.model_validate({"root": str(tmp_path), "sources": [source]})
    options = {"submission": {"template": "sample.csv", "name_column": "image"}}
    ensemble = EnsembleConfig.model_validate(options)
    pairs = pd.DataFrame(
        {"split": ["val", "test", "test"], "text_id": ["1", "1", "2"], "text": ["other", "a", "b"], "group": "all"}
    )
    ranking = pd.DataFrame(
        [("test", "t2i", query, 1, f"{query}.jpg") for query in ("1", "2")],
        columns=["split", "direction", "query_id", "rank", "gallery_id"],
    )
    matching = pd.DataFrame({"split": "test", "group": "all", "text_id": ["1", "2"], "image_id": ["1.jpg", "2.jpg"]})
    _, table = write_submission(pairs, ranking, matching, ensemble, data)
    assert table.to_dict("list") == {"idx": ["2", "1"], "image": ["2.jpg", "1.jpg"]}
    assert write_predictions(pairs, ranking, matching, ensemble, data)[1].equals(table)
    (tmp_path / "sample.csv").unlink()
    assert write_predictions(pairs, ranking, matching, ensemble, data)[1].to_dict("list") == {
        "image": ["1.jpg", "2.jpg"]
    }
    with pytest.raises(ValueError, match=r"ensemble\.submission\.template: .*sample\.csv cannot be read"):
        write_submission(pairs, ranking, matching, ensemble, data)
