"""Vehicle phrases and pedestrian vectors are read as the challenge means them, and as its real rows need."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import SHARED
from xmodal_kedro.config.data import VehicleVocabulary
from xmodal_kedro.data.attributes import (
    VehicleAttributes,
    Vocabulary,
    is_bit_vector,
    learn_vocabulary,
    normalise_phrase,
    parse_pedestrian,
    parse_vehicle,
    pedestrian_matrix,
    resolve_vocabulary,
)

LABELS = SHARED / "texts" / "cvpr2023_track2_vehicle_labels.csv"
WORDS = SHARED / "texts" / "cvpr2023_track2_car_attribute.json"
TRAFFIC = SHARED / "traffic" / "train.parquet"

VOCABULARY = Vocabulary(
    colors=("white", "dark blue", "blue"),
    brands=("Audi", "Balong Heavy Truck", "Golden Dragon", "Land Rover", "MINI", "smart"),
    types=("Truck", "Bus", "SUV", "Minivan"),
)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("A white Audi.", VehicleAttributes("white", "Audi")),
        ("white Audi SUV", VehicleAttributes("white", "Audi", "SUV")),
        ("This is a white Audi SUV.", VehicleAttributes("white", "Audi", "SUV")),
        ("This is an Audi", VehicleAttributes(brand="Audi")),
        ("An Audi.", VehicleAttributes(brand="Audi")),
        ("A Truck.", VehicleAttributes(type="Truck")),
        ("white.", VehicleAttributes("white")),
        ("A dark blue Land Rover SUV.", VehicleAttributes("dark blue", "Land Rover", "SUV")),
        ("A Balong Heavy Truck.", VehicleAttributes(brand="Balong Heavy Truck")),
        ("A white Balong Heavy Truck Truck.", VehicleAttributes("white", "Balong Heavy Truck", "Truck")),
        ("A white Balong Truck.", VehicleAttributes("white", type="Truck", rest="Balong")),
        ("an  white\tGolden  Dragon Bus .", VehicleAttributes("white", "Golden Dragon", "Bus")),
        ("A Golden Bus.", VehicleAttributes(type="Bus", rest="Golden")),
        ("A WHITE AUDI SUV", VehicleAttributes("white", "Audi", "SUV")),
        ("A Mini Minivan", VehicleAttributes(brand="MINI", type="Minivan")),
        ("A smart.", VehicleAttributes(brand="smart")),
        ("A white, blue Audi and MINI SUV", VehicleAttributes("white", "Audi", "SUV", rest="blue and MINI")),
        ("A pink elephant.", VehicleAttributes(rest="pink elephant")),
        ("", VehicleAttributes()),
        ("A.", VehicleAttributes()),
    ],
)
def test_phrases_are_read_into_parts(phrase: str, expected: VehicleAttributes) -> None:
    assert parse_vehicle(phrase, VOCABULARY) == expected


def test_the_exact_spelling_goes_before_another_case() -> None:
    vocabulary = Vocabulary(colors=("white",), brands=("White", "Audi"), types=())
    assert parse_vehicle("A white White.", vocabulary) == VehicleAttributes("white", "White")
    assert parse_vehicle("A White white.", vocabulary) == VehicleAttributes("white", "White")
    assert parse_vehicle("A WHITE audi.", vocabulary) == VehicleAttributes("white", "Audi")


@given(
    st.sampled_from([None, "white", "dark blue"]),
    st.sampled_from([None, "Audi", "Balong Heavy Truck", "Golden Dragon"]),
    st.sampled_from([None, "Truck", "SUV"]),
    st.sampled_from(["", "A ", "an ", "This is a ", "This is an "]),
    st.sampled_from(["", ".", " ."]),
)
def test_a_phrase_made_of_parts_gives_them_back(color, brand, type_, prefix, ending) -> None:
    phrase = prefix + " ".join(part for part in (color, brand, type_) if part) + ending
    if any((color, brand, type_)):
        assert parse_vehicle(phrase, VOCABULARY) == VehicleAttributes(color, brand, type_)


@pytest.mark.parametrize(
    "phrase", ["A white Audi.", "white Audi", "This is a white  Audi .", " an white Audi", "the white Audi。"]
)
def test_phrases_that_mean_the_same_are_equal_after_normalising(phrase: str) -> None:
    assert normalise_phrase(phrase) == "white Audi"


def test_normalising_keeps_words_and_their_case() -> None:
    assert normalise_phrase("A3 white Audi.") == "A3 white Audi"
    assert normalise_phrase("A white audi.") != normalise_phrase("A white Audi.")
    assert normalise_phrase("Android car") == "Android car"


def test_what_the_words_are_is_learned_from_how_phrases_are_built() -> None:
    phrases = [
        "A white Audi.",
        "A dark blue Audi SUV",
        "Truck",
        "Hongyan",
        "Balong Heavy Truck",
        "A red Golden Dragon.",
    ]
    phrases += [
        "A Golden Dragon Bus.",
        "An AM General",
        "a white van",
        "A grey car.",
        "This is a Land Rover SUV",
        "Land Rover",
    ]
    learned = learn_vocabulary(phrases)
    assert learned == Vocabulary(
        ("white", "dark blue", "red", "grey"),
        ("Audi", "Hongyan", "Balong Heavy Truck", "Golden Dragon", "AM General", "Land Rover"),
        ("SUV", "Truck", "Bus", "van"),
    )
    assert learn_vocabulary(reversed(phrases * 2)) == learned
    assert list(learned.brands) == sorted(learned.brands)


def test_truck_is_part_of_a_name_also_where_a_type_follows_it() -> None:
    learned = learn_vocabulary(["red Balong Heavy Truck Truck", "white Balong Heavy Truck Minivan"])
    assert learned == Vocabulary(("red", "white"), ("Balong Heavy Truck",), ("Minivan", "Truck"))


def test_nothing_is_learned_from_nothing() -> None:
    assert learn_vocabulary([]) == Vocabulary()
    assert learn_vocabulary(["", "A.", ".", "A car"]) == Vocabulary()


def test_given_lists_are_taken_and_the_others_learned_by_them() -> None:
    phrases = ["A smart Targa.", "A Dodge Targa", "A Dodge Truck"]
    resolved = resolve_vocabulary(VehicleVocabulary(colors=[], types=["Targa"]), phrases)
    assert resolved == Vocabulary((), ("smart", "Dodge", "Dodge Truck"), ("Targa",))
    resolved = resolve_vocabulary(VehicleVocabulary(brands=["Aston Martin"]), ["red Aston Martin Coupe", "Van"])
    assert resolved == Vocabulary(("red",), ("Aston Martin",), ("Coupe", "Van"))
    everything = VehicleVocabulary(colors=["red"], brands=["Z", "B"], types=["Van"])
    assert resolve_vocabulary(everything, phrases) == Vocabulary(("red",), ("B", "Z"), ("Van",))


def test_lists_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="'Jeep' is in brands and in types"):
        VehicleVocabulary(brands=["Jeep"], types=["Jeep", "SUV"])
    with pytest.raises(ValidationError, match="colors holds an empty entry"):
        VehicleVocabulary(colors=["red", " "])


def test_a_pedestrian_vector_is_read_bit_by_bit() -> None:
    bits = parse_pedestrian("1,0, 1" + ",0" * 17 + ",1")
    assert bits.dtype == bool
    assert np.flatnonzero(bits).tolist() == [0, 2, 20]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ("1,0,1", "21 values 0 or 1 with commas between, not 3 as in '1,0,1'"),
        (",".join("0" * 22), "not 22"),
        ("", "not 1"),
        ("0,0,0,2" + ",0" * 17, r"bit 3 \(counted from 0\) .* is '2'"),
        (",".join("0" * 20) + ",", "bit 20 .* is ''"),
        ("1.0" + ",0" * 20, "bit 0 .* is '1.0'"),
    ],
)
def test_a_broken_vector_is_told_by_its_field(bits: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pedestrian(bits)


@given(st.lists(st.integers(0, 2**21 - 1), max_size=30))
def test_a_matrix_is_its_rows(vectors: list[int]) -> None:
    rows = [",".join(f"{vector:021b}") for vector in vectors]
    matrix = pedestrian_matrix(pd.Series(rows, dtype="str"))
    assert matrix.shape == (len(rows), 21)
    assert matrix.tolist() == [[bit == "1" for bit in f"{vector:021b}"] for vector in vectors]


def test_a_matrix_names_its_bad_row() -> None:
    good = ",".join("0" * 21)
    with pytest.raises(ValueError, match=r"row 'b': .* not 3"):
        pedestrian_matrix(pd.Series([good, "0,0,1", "0,0,1"], index=["a", "b", "c"]))
    with pytest.raises(ValueError, match="row 'b' has no pedestrian vector"):
        pedestrian_matrix(pd.Series([good, None], index=["a", "b"]))


def test_vectors_are_told_from_phrases() -> None:
    assert is_bit_vector(",".join("01" * 10 + "0"))
    assert is_bit_vector("0,?" + ",0" * 19), "a broken vector is one: its error should not get lost"
    assert not is_bit_vector("A white Audi.")
    assert not is_bit_vector("0,1")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    if not LABELS.is_file():
        pytest.skip(f"the challenge's texts are not at {LABELS.parent}")
    return pd.read_csv(LABELS, keep_default_na=False)


@pytest.fixture(scope="module")
def published(rows: pd.DataFrame) -> Vocabulary:
    words = json.loads(WORDS.read_text())
    return Vocabulary(words["Colors"], words["Brands"], words["Types"])


def parse_all(phrases: pd.Series, vocabulary: Vocabulary) -> pd.DataFrame:
    parsed = {phrase: vars(parse_vehicle(phrase, vocabulary)) for phrase in phrases.unique()}
    return pd.DataFrame([parsed[phrase] for phrase in phrases])


@pytest.mark.parametrize("column", ["attribute_text", "caption", "machine_augmented_text"])
@pytest.mark.parametrize("splits", [["train"], ["train", "val"]])
def test_the_published_vocabulary_is_learned_from_the_real_rows(rows, published, column, splits) -> None:
    learned = learn_vocabulary(rows.loc[rows["split"].isin(splits), column])
    assert learned == published
    assert (len(learned.colors), len(learned.types), len(learned.brands)) == (11, 6, 65)


def test_every_real_row_is_parsed_in_full(rows, published) -> None:
    assert len(rows) == 46_075
    parts = parse_all(rows["attribute_text"], published)
    assert (parts["rest"] == "").all()
    for part in ("color", "brand", "type"):
        assert tuple(sorted(parts[part].dropna().unique())) == getattr(published, f"{part}s")
    assert parts.loc[parts["brand"] == "Balong Heavy Truck", "type"].isna().all()
    assert (parts["color"].notna().sum(), parts["brand"].notna().sum(), parts["type"].notna().sum()) == (
        38995,
        39591,
        6484,
    )
    pd.testing.assert_frame_equal(parse_all(rows["caption"], published), parts)


def test_the_other_teams_texts_keep_every_part_of_the_real_rows(rows, published) -> None:
    parts = parse_all(rows["attribute_text"], published)
    completed = parse_all(rows["machine_augmented_text"], published)
    assert (completed["rest"] == "").all()
    assert completed[["color", "brand", "type"]].notna().all(axis=None)
    for part in ("color", "brand", "type"):
        said = parts[part].notna()
        assert (completed.loc[said, part] == parts.loc[said, part]).all()


def test_the_traffic_crops_are_parsed_in_full_once_it_is_said_that_they_have_no_colours() -> None:
    if not TRAFFIC.is_file():
        pytest.skip(f"the traffic crops are not at {TRAFFIC.parent}")
    columns = ["attributes", "kind"]
    train, val = (pd.read_parquet(TRAFFIC.with_stem(split), columns=columns) for split in ("train", "val"))
    phrases = train.loc[train["kind"] == "vehicle", "attributes"]
    vocabulary = resolve_vocabulary(VehicleVocabulary(colors=[]), phrases)
    assert {"Land Rover", "Aston Martin", "AM General", "smart"} < set(vocabulary.brands)
    assert {"Coupe", "Pickup", "Wagon"} < set(vocabulary.types)
    for phrase in {*phrases, *val.loc[val["kind"] == "vehicle", "attributes"]}:
        assert parse_vehicle(phrase, vocabulary).rest == ""
    people = train.loc[train["kind"] == "pedestrian", "attributes"]
    assert people.map(is_bit_vector).all()
    assert pedestrian_matrix(people).shape == (len(people), 21)
