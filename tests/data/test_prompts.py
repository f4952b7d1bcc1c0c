"""Prompts change the rows they are configured for as the published systems did, and no other."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import SHARED
from xmodal_kedro.config.data import GroupPrompts, PromptsConfig
from xmodal_kedro.config.recipe import RecipeError, read_recipe
from xmodal_kedro.data.attributes import Vocabulary
from xmodal_kedro.data.prompts import augment, split_sentences

COLUMNS = ["image_id", "text_id", "path", "text", "group", "attributes", "split", "row", "source"]
VOCABULARY = Vocabulary(("white",), ("Audi", "Balong Heavy Truck"), ("SUV", "Truck"))
BITS = ",".join("0" * 21)
FIRST_PLACE = GroupPrompts(
    append=[
        "This is a vehicle.",
        "The brand of the vehicle is {brand}.",
        "The vehicle's model is {type}.",
        "The color of the vehicle is {color}.",
    ],
    separator="",
)


def pairs(*rows: tuple) -> pd.DataFrame:
    """Pairs from (image_id, text_id, text, group, attributes, split)."""
    table = [(i, t, i, text, g, a, s, n, "labels.txt") for n, (i, t, text, g, a, s) in enumerate(rows, start=1)]
    strings = [column for column in COLUMNS if column != "row"]
    return pd.DataFrame(table, columns=COLUMNS).astype(dict.fromkeys(strings, "str") | {"row": "int64"})


MIXED = pairs(
    ("v1", "a:1", "This is a white Audi.", "vehicle", "A white Audi.", "train"),
    ("p1", "a:2", "A man walks. He is in black.", "pedestrian", BITS, "train"),
    ("v2", "a:3", "A Balong Heavy Truck", "vehicle", "A Balong Heavy Truck.", "train"),
    ("v3", "a:4", "This is something.", "vehicle", None, "train"),
    ("v4", None, None, "vehicle", "A white Audi.", "train"),
    (None, "a:6", "A white Audi.", "vehicle", "A white Audi.", "train"),
    ("v5", "b:1", "A white SUV.", "vehicle", "A white SUV.", "val"),
    (None, "c:1", "A white Audi SUV.", "vehicle", None, "test"),
)


def test_the_published_sentences_are_appended_in_order() -> None:
    captions = augment(MIXED, PromptsConfig(groups={"vehicle": FIRST_PLACE}), VOCABULARY)
    assert captions["text"].replace({np.nan: None}).tolist() == [
        "This is a white Audi.This is a vehicle.The brand of the vehicle is Audi.The color of the vehicle is white.",
        "A man walks. He is in black.",
        "A Balong Heavy TruckThis is a vehicle.The brand of the vehicle is Balong Heavy Truck.",
        "This is something.This is a vehicle.",
        None,
        "A white Audi.This is a vehicle.The brand of the vehicle is Audi.The color of the vehicle is white.",
        "A white SUV.",
        "A white Audi SUV.",
    ]
    pd.testing.assert_frame_equal(captions[COLUMNS].drop(columns="text"), MIXED.drop(columns="text"))
    pd.testing.assert_series_equal(captions["origin"], MIXED["text_id"], check_names=False)


def test_queries_get_what_is_appended_and_no_extra_rows_when_asked() -> None:
    prompts = GroupPrompts(append=["It is {color}."], rows=["{text}!"], sentence_rows=True)
    captions = augment(MIXED, PromptsConfig(groups={"vehicle": prompts}, queries=True), VOCABULARY)
    later = captions[captions["split"] != "train"]
    assert later["text"].tolist() == ["A white SUV. It is white.", "A white Audi SUV."], "c:1 has no attributes"
    assert later["text_id"].tolist() == ["b:1", "c:1"]


def test_extra_rows_follow_theirs_with_the_same_image_and_attributes() -> None:
    groups = {
        "vehicle": GroupPrompts(rows=["A {type}.", "A {color} {brand}.", "{text} In traffic."], append=["Seen."]),
        "pedestrian": GroupPrompts(sentence_rows=True),
    }
    captions = augment(MIXED, PromptsConfig(groups=groups), VOCABULARY)
    train = captions[captions["split"] == "train"].replace({np.nan: None})
    assert train[["image_id", "text_id", "text", "origin"]].to_numpy().tolist() == [
        ["v1", "a:1", "This is a white Audi. Seen.", "a:1"],
        ["v1", "a:1/2", "A white Audi.", "a:1"],
        ["v1", "a:1/3", "This is a white Audi. In traffic.", "a:1"],
        ["p1", "a:2", "A man walks. He is in black.", "a:2"],
        ["p1", "a:2/1", "A man walks.", "a:2"],
        ["p1", "a:2/2", "He is in black.", "a:2"],
        ["v2", "a:3", "A Balong Heavy Truck Seen.", "a:3"],
        ["v2", "a:3/3", "A Balong Heavy Truck In traffic.", "a:3"],
        ["v3", "a:4", "This is something. Seen.", "a:4"],
        ["v3", "a:4/3", "This is something. In traffic.", "a:4"],
        ["v4", None, None, None],
        [None, "a:6", "A white Audi. Seen.", "a:6"],
    ]
    inherited = ["image_id", "path", "group", "attributes", "split", "row", "source"]
    of_origin = MIXED.set_index("text_id").loc[captions["origin"].dropna(), inherited].reset_index(drop=True)
    pd.testing.assert_frame_equal(captions.loc[captions["origin"].notna(), inherited].reset_index(drop=True), of_origin)
    assert captions["text_id"].dropna().is_unique


@pytest.mark.parametrize("table", [MIXED, MIXED.iloc[:0], MIXED.iloc[::-1], MIXED.iloc[[4]]])
def test_without_templates_the_captions_are_the_pairs(table: pd.DataFrame) -> None:
    before = table.copy(deep=True)
    for groups in ({}, {"vehicle": GroupPrompts()}, {"faces": GroupPrompts(append=["Seen."])}):
        captions = augment(table, PromptsConfig(groups=groups), VOCABULARY)
        expected = table.reset_index(drop=True)
        pd.testing.assert_frame_equal(captions, expected.assign(origin=expected["text_id"]))
    augment(table, PromptsConfig(groups={"vehicle": FIRST_PLACE}), VOCABULARY)
    pd.testing.assert_frame_equal(table, before)


def test_the_group_of_phrases_can_have_another_name() -> None:
    table = pairs(("c", "t", "Look.", "cars", "A white Audi.", "train"))
    config = PromptsConfig(vehicle_group="cars", groups={"cars": GroupPrompts(append=["A {brand}, {{sic}}."])})
    assert augment(table, config, VOCABULARY)["text"].tolist() == ["Look. A Audi, {sic}."]


def test_words_of_a_text_that_look_like_a_template_are_left_alone() -> None:
    table = pairs(("c", "t", "{color} and {} %s", "vehicle", "A white Audi.", "train"))
    config = PromptsConfig(groups={"vehicle": GroupPrompts(append=["{text}"])})
    assert augment(table, config, VOCABULARY)["text"].tolist() == ["{color} and {} %s {color} and {} %s"]


def test_a_large_table_keeps_its_order() -> None:
    table = MIXED.iloc[np.arange(200_000) % 4].reset_index(drop=True)
    table["text_id"] = "a:" + table.index.astype(str)
    groups = {"vehicle": FIRST_PLACE, "pedestrian": GroupPrompts(sentence_rows=True)}
    captions = augment(table, PromptsConfig(groups=groups), VOCABULARY)
    assert len(captions) == 300_000
    assert (captions["origin"] == captions["text_id"].str.partition("/")[0]).all()
    assert captions["origin"].drop_duplicates().tolist() == table["text_id"].tolist()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A man walks. He is in black.", ["A man walks.", "He is in black."]),
        ("A man walks.He is in black", ["A man walks.", "He is in black."]),
        ("  A man walks .  ", ["A man walks."]),
        ("One sentence", ["One sentence."]),
        ("It is 3.5 m long. Red.", ["It is 3.5 m long.", "Red."]),
        ("He has, e.g. a bag. She does not.", ["He has, e.g. a bag.", "She does not."]),
        ("Mr. Smith of the U.S. Army runs! Why?", ["Mr. Smith of the U.S. Army runs!", "Why?"]),
        ("He lives in the U.S.", ["He lives in the U.S."]),
        ("He waits... Then he goes.", ["He waits.", "Then he goes."]),
        ("一个男人在走。他穿黑色衣服。", ["一个男人在走。", "他穿黑色衣服。"]),
        ("一个男人在走！他穿3.5号鞋", ["一个男人在走！", "他穿3.5号鞋！"]),
        ("...", []),
        ("", []),
        (". . A dog.", ["A dog."]),
        ("Dogs etc. A cat.", ["Dogs etc.", "A cat."]),
        ("line one.\nLine two.", ["line one.", "Line two."]),
    ],
)
def test_texts_are_split_into_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_each_real_pedestrian_caption_is_two_sentences() -> None:
    file = SHARED / "texts" / "cvpr2023_track2_val_pedestrian_captions.csv"
    if not file.is_file():
        pytest.skip(f"the challenge's captions are not at {file}")
    captions = pd.read_csv(file)["caption"].unique()
    assert len(captions) == 4146
    for caption in captions:
        first, second = split_sentences(caption)
        assert f"{first} {second}" == caption


@given(st.lists(st.from_regex(r"[A-Z][a-z]{2,8}( [a-z]{2,8}){1,5}", fullmatch=True), min_size=1, max_size=5))
def test_sentences_that_are_joined_come_apart_again(sentences: list[str]) -> None:
    sentences = [re.sub(r" (vs|approx|ca|cf|no|st)$", " word", sentence) + "." for sentence in sentences]
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"append": ["A {colour}."]},
            "append.0: cannot fill this template: no part is called 'colour'; it may hold {color}",
        ),
        ({"rows": ["fine", "A {}."]}, "rows.1: cannot fill this template: no part is called ''"),
        ({"rows": ["A {color.upper}."]}, "rows.0: cannot fill this template: no part is called 'color.upper'"),
        ({"rows": ["A {color!r}."]}, "rows.0: cannot fill this template"),
        ({"append": ["A {color"]}, "append.0: cannot fill this template: expected '}' before end of string"),
        ({"append": [3]}, "append.0: Input should be a valid string"),
    ],
)
def test_a_template_that_cannot_be_filled_fails_with_its_key(prompts: dict, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe({"member_names": [], "prompts": {"groups": {"vehicle": prompts}}})
    assert f"prompts.groups.vehicle.{message}" in str(error.value)


def test_only_the_group_with_phrases_may_name_their_parts() -> None:
    with pytest.raises(ValidationError, match=r"groups\.pedestrian names {brand} in 'A {brand}\.'"):
        PromptsConfig(groups={"pedestrian": GroupPrompts(rows=["A {brand}."])})
    PromptsConfig(groups={"pedestrian": GroupPrompts(rows=["Seen: {text}"])})
