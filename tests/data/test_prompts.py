"""Prompts change the rows they are configured for as the published systems did, and no other."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import SHARED
from xmodal_kedro.config.data import CompletionConfig, GroupPrompts, PromptsConfig, QueryForm, RelevanceConfig
from xmodal_kedro.config.recipe import RecipeError, read_recipe
from xmodal_kedro.data.attributes import Vocabulary
from xmodal_kedro.data.completion import incomplete_rows
from xmodal_kedro.data.prompts import augment, fill_skipping, member_captions, parts_of, split_sentences
from xmodal_kedro.retrieval.slices import cut_slices

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
    pd.testing.assert_series_equal(captions["pair_text"], MIXED["text"], check_names=False)


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
        pd.testing.assert_frame_equal(captions, expected.assign(origin=expected["text_id"], pair_text=expected["text"]))
    augment(table, PromptsConfig(groups={"vehicle": FIRST_PLACE}), VOCABULARY)
    pd.testing.assert_frame_equal(table, before)


def texts_of(prompts: dict[str, GroupPrompts], split: str, **options: object) -> list[str | None]:
    captions = augment(MIXED, PromptsConfig(groups=prompts, **options), VOCABULARY)
    return captions.loc[captions["split"] == split, "text"].replace({np.nan: None}).tolist()


def test_a_train_text_is_replaced_by_the_parts_that_are_there() -> None:
    prompts = {"vehicle": GroupPrompts(replace="This is a {color} {brand} {type}.")}
    assert texts_of(prompts, "train") == [
        "This is a white Audi.",
        "A man walks. He is in black.",
        "This is a Balong Heavy Truck.",
        "This is something.",
        None,
        "This is a white Audi.",
    ]
    assert texts_of(prompts, "val") + texts_of(prompts, "test") == ["A white SUV.", "A white Audi SUV."]


@pytest.mark.parametrize(
    ("template", "parts", "filled"),
    [
        ("This is a {color} {brand} {type}.", {"color": "white"}, "This is a white."),
        ("This is a {color} {brand} {type}.", {"type": "SUV"}, "This is a SUV."),
        ("{color} {brand} {type}", {"color": "white", "type": "SUV"}, "white SUV"),
        ("{color} {brand} {type}", {"brand": "Golden Dragon"}, "Golden Dragon"),
        ("{color} {brand} {type}", {}, None),
        ("{text} It is {color}, {brand}!", {"color": "white"}, "So. It is white,!"),
        ("a {color}{brand}", {"brand": "Audi"}, "a Audi"),
        ("{{{color}}} of {brand}", {"color": "white"}, "{white} of"),
        ("{text}!", {}, "So.!"),
    ],
)
def test_parts_are_skipped_with_the_blanks_before_them(template: str, parts: dict, filled: str | None) -> None:
    assert fill_skipping(template, parts, "So.") == filled


A3R_QUERY = QueryForm(strip_prefixes=["A ", "This is a ", "An ", "This is an "], strip_end=".")


@pytest.mark.parametrize(
    ("text", "form", "asked"),
    [
        ("This is a white Audi Sedan.", A3R_QUERY, "white Audi Sedan"),
        ("This is an orange Golden Dragon Bus.", A3R_QUERY, "orange Golden Dragon Bus"),
        ("An orange Bus", A3R_QUERY, "orange Bus"),
        ("A white SUV...", A3R_QUERY, "white SUV"),
        ("a white SUV.", A3R_QUERY, "a white SUV"),
        ("Any SUV. ", A3R_QUERY, "Any SUV"),
        ("A This is a SUV", A3R_QUERY, "This is a SUV"),
        ("A .", A3R_QUERY, "A ."),
        ("This is a white Audi.", QueryForm(strip_prefixes=["This", "This is a ", "This is"]), "white Audi."),
        (
            "This is a white Audi Sedan.",
            QueryForm(strip_end=".", suffix=" image taken by traffic surveillance cameras"),
            "This is a white Audi Sedan image taken by traffic surveillance cameras",
        ),
        ("这是一辆白色轿车。", QueryForm(strip_prefixes=["这是"], strip_end="。."), "一辆白色轿车"),
    ],
)
def test_queries_are_put_as_they_were_published(text: str, form: QueryForm, asked: str) -> None:
    for split in ("dev", "val", "test"):
        table = pairs(("i", "t", text, "vehicle", None, split))
        captions = augment(table, PromptsConfig(groups={"vehicle": GroupPrompts(query=form)}), VOCABULARY)
        assert captions["text"].tolist() == [asked]
        assert captions["pair_text"].tolist() == [text]
    table = pairs(("i", "t", text, "vehicle", None, "train"))
    captions = augment(table, PromptsConfig(groups={"vehicle": GroupPrompts(query=form)}), VOCABULARY)
    assert captions["text"].tolist() == [text], "train texts are no queries"


def test_what_is_appended_to_queries_follows_their_form() -> None:
    prompts = GroupPrompts(query=A3R_QUERY, append=["It is {color}: {text}"])
    assert texts_of({"vehicle": prompts}, "val", queries=True) == ["white SUV It is white: A white SUV."]


def test_the_rows_that_the_first_place_meant_to_add() -> None:
    color, brand = "The color of the vehicle is {color}.", "The brand of the vehicle is {brand}."
    prompts = GroupPrompts(rows=[[color, brand], ["{text}", color, brand]], separator="")
    captions = augment(MIXED, PromptsConfig(groups={"vehicle": prompts}), VOCABULARY)
    train = captions[(captions["split"] == "train") & captions["image_id"].notna() & captions["text"].notna()]
    of_white = "The color of the vehicle is white.The brand of the vehicle is Audi."
    of_truck = "The brand of the vehicle is Balong Heavy Truck."
    assert train[train["group"] == "vehicle"][["image_id", "text_id", "text"]].to_numpy().tolist() == [
        ["v1", "a:1", "This is a white Audi."],
        ["v1", "a:1/1", of_white],
        ["v1", "a:1/2", "This is a white Audi." + of_white],
        ["v2", "a:3", "A Balong Heavy Truck"],
        ["v2", "a:3/1", of_truck],
        ["v2", "a:3/2", "A Balong Heavy Truck" + of_truck],
        ["v3", "a:4", "This is something."],
    ]


def test_completed_parts_fill_the_templates() -> None:
    completed = pd.DataFrame(
        [("v2", "a:3", "white", None, "Truck"), ("v1", "b:1", "white", "Audi", "SUV")],
        columns=["image_id", "text_id", "color", "brand", "type"],
    )
    prompts = PromptsConfig(groups={"vehicle": GroupPrompts(replace="{color} {brand} {type}", append=["{type}!"])})
    captions = augment(MIXED, prompts, VOCABULARY, completed)
    assert captions["text"].replace({np.nan: None}).tolist() == [
        "white Audi",
        "A man walks. He is in black.",
        "white Truck Truck!",
        "This is something.",
        None,
        "white Audi",
        "A white SUV.",
        "A white Audi SUV.",
    ], "v1 with a:1 is another row than v1 with b:1"
    empty = augment(MIXED, prompts, VOCABULARY, completed.iloc[:0])
    pd.testing.assert_frame_equal(empty, augment(MIXED, prompts, VOCABULARY))


def test_released_completions_give_the_released_captions() -> None:
    file = SHARED / "texts" / "cvpr2023_track2_vehicle_labels.csv"
    if not file.is_file():
        pytest.skip(f"the labels and completions of A3R are not at {file}")
    entries = json.loads((file.parent / "cvpr2023_track2_car_attribute.json").read_text())
    vocabulary = Vocabulary(tuple(entries["Colors"]), tuple(entries["Brands"]), tuple(entries["Types"]))
    labels = pd.read_csv(file).query("split == 'train'").reset_index(drop=True)
    assert len(labels) == 42704
    ids = "a:" + labels.index.astype("str")
    rows = zip(labels["image_name"], ids, labels["caption"], labels["attribute_text"], strict=True)
    table = pairs(*[(image, text_id, text, "vehicle", phrase, "train") for image, text_id, text, phrase in rows])
    found = {phrase: parts_of(phrase, vocabulary) for phrase in labels["machine_augmented_text"].unique()}
    completed = table[["image_id", "text_id"]].join(pd.DataFrame([found[p] for p in labels["machine_augmented_text"]]))
    prompts = PromptsConfig(groups={"vehicle": GroupPrompts(replace="{color} {brand} {type}")})
    captions = augment(table, prompts, vocabulary, completed)
    assert captions["text"].tolist() == labels["machine_augmented_text"].tolist()
    completing = CompletionConfig(member="m", parts=["color", "brand", "type"])
    incomplete = incomplete_rows(table, pd.Index(table["image_id"].unique()), prompts, vocabulary, completing)
    assert len(incomplete) > 40000
    filled = completed.set_index(["image_id", "text_id"]).loc[
        pd.MultiIndex.from_frame(incomplete[["image_id", "text_id"]])
    ]
    for part in ("color", "brand", "type"):
        lacks = incomplete["completed"].str.contains(part).to_numpy()
        assert (incomplete[part].notna().to_numpy() == ~lacks).all()
        assert (incomplete[part].to_numpy()[~lacks] == filled[part].to_numpy()[~lacks]).all()


def test_a_member_trains_on_captions_of_its_own_and_is_asked_as_all_are() -> None:
    shared = PromptsConfig(
        groups={
            "vehicle": GroupPrompts(replace="{color} {brand}", query=A3R_QUERY, append=["Seen."]),
            "pedestrian": GroupPrompts(sentence_rows=True),
        },
        queries=True,
    )
    captions = augment(MIXED, shared, VOCABULARY)
    own = member_captions(MIXED, captions, shared, {"vehicle": FIRST_PLACE}, VOCABULARY)
    train = own[own["split"] == "train"]
    assert train["text"].replace({np.nan: None}).tolist() == [
        "This is a white Audi.This is a vehicle.The brand of the vehicle is Audi.The color of the vehicle is white.",
        "A man walks. He is in black.",
        "A man walks.",
        "He is in black.",
        "A Balong Heavy TruckThis is a vehicle.The brand of the vehicle is Balong Heavy Truck.",
        "This is something.This is a vehicle.",
        None,
        "A white Audi.This is a vehicle.The brand of the vehicle is Audi.The color of the vehicle is white.",
    ]
    later = own[own["split"] != "train"].reset_index(drop=True)
    pd.testing.assert_frame_equal(later, captions[captions["split"] != "train"].reset_index(drop=True))
    assert later["text"].tolist() == ["white SUV Seen.", "white Audi SUV Seen."]
    unchanged = member_captions(MIXED, captions, shared, {}, VOCABULARY)
    pd.testing.assert_frame_equal(unchanged, captions)


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
        ({"rows": [["{text}", "A {colour}."]]}, "rows.0: cannot fill this template: no part is called 'colour'"),
        ({"replace": "A {colour}."}, "replace: cannot fill this template: no part is called 'colour'"),
    ],
)
def test_a_template_that_cannot_be_filled_fails_with_its_key(prompts: dict, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe({"member_names": [], "prompts": {"groups": {"vehicle": prompts}}})
    assert f"prompts.groups.vehicle.{message}" in str(error.value)


def test_only_the_group_with_phrases_may_name_their_parts() -> None:
    with pytest.raises(ValidationError, match=r"groups\.pedestrian names {brand} in 'A {brand}\.'"):
        PromptsConfig(groups={"pedestrian": GroupPrompts(rows=[["Seen.", "A {brand}."]])})
    PromptsConfig(groups={"pedestrian": GroupPrompts(rows=["Seen: {text}"])})


def test_prompts_of_queries_do_not_change_which_texts_are_equal() -> None:
    table = pairs(
        ("v1", "b:1", "A white SUV.", "vehicle", "A white SUV.", "val"),
        ("v2", "b:2", "This is a white SUV.", "vehicle", "A white SUV.", "val"),
        ("v3", "b:3", "A white SUV.", "vehicle", None, "val"),
    )
    captions = augment(table, PromptsConfig(groups={"vehicle": GroupPrompts(query=A3R_QUERY)}), VOCABULARY)
    assert captions["text"].tolist() == ["white SUV"] * 3
    (part,) = cut_slices(captions, RelevanceConfig(default="text"), ["val"])
    assert part.texts == ["white SUV"] * 3
    assert part.relevance.toarray().tolist() == [[True, False, True], [False, True, False], [True, False, True]]
