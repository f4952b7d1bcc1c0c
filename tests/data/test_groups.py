"""Misspelt names of groups are told from those of data that another recipe has."""

from __future__ import annotations

import pandas as pd
import pytest

from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.groups import misspelt_groups
from xmodal_kedro.pipelines.data_processing.nodes import make_captions
from xmodal_kedro.pipelines.train.nodes import make_train_captions

PAIRS = pd.DataFrame(
    {
        "image_id": ["1", "2"],
        "text_id": ["1", "2"],
        "text": ["A car.", "A man."],
        "attributes": pd.Series([None, None], dtype="str"),
        "group": ["vehicle", "pedestrian"],
        "split": "train",
    }
)


def test_a_misspelt_name_comes_with_its_key_and_what_there_is() -> None:
    found = misspelt_groups({"a.groups": ["vehicle", "vehicles"], "b": ["pedestrain"]}, ["vehicle", "pedestrian"])
    assert found == [
        "a.groups names the group 'vehicles', which no row has, so it does nothing; did you mean 'vehicle'? "
        "The groups are pedestrian, vehicle",
        "b names the group 'pedestrain', which no row has, so it does nothing; did you mean 'pedestrian'? "
        "The groups are pedestrian, vehicle",
    ]


@pytest.mark.parametrize("there", [["all"], ["photo", "drawing"], ["vehicle", "pedestrian"], ["vehicle"], []])
def test_groups_of_the_base_are_no_noise_where_the_data_lacks_them(there: list[str]) -> None:
    assert misspelt_groups({"prompts.groups": ["vehicle", "pedestrian"]}, there) == []


def test_captions_warn_once_of_each_misspelt_group(caplog: pytest.LogCaptureFixture) -> None:
    prompts = PromptsConfig.model_validate(
        {"vehicle_group": "vehicel", "groups": {"pedestrians": {"sentence_rows": True}, "pedestrian": {}}}
    )
    relevance = RelevanceConfig(groups={"vehicles": "text", "vehicle": "id", "drawing": "id"})
    make_captions(PAIRS, prompts, relevance)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(", which")[0] for message in warned] == [
        "prompts.groups names the group 'pedestrians'",
        "prompts.vehicle_group names the group 'vehicel'",
        "relevance.groups names the group 'vehicles'",
    ]


def test_a_member_warns_of_its_own_prompts(caplog: pytest.LogCaptureFixture) -> None:
    prompts = {"vehicles": {"append": ["x"]}, "pedestrian": {"append": ["x"]}}
    member = MemberConfig.model_validate(
        {
            "name": "blip",
            "backbone": {"name": "open_clip"},
            "train": {"epochs": 1, "batch_size": 2, "lr": 1e-3},
            "prompts": prompts,
        }
    )
    captions = make_captions(PAIRS, PromptsConfig(), RelevanceConfig())
    make_train_captions(PAIRS, captions, PromptsConfig(), member)
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned.startswith("blip.prompts names the group 'vehicles', which no row has")
