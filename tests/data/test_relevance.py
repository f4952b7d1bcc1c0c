"""Relevance is what the slow obvious reference says, for every mode, and cheap for large galleries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import relevance as reference
from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.data.relevance import relevance_keys, text_to_image_relevance

MODES = ["id", "text", "attribute_text", "attribute_inclusion"]
PHRASES = [None, "A white Audi.", "white Audi", "A white audi.", "A Truck."]


def bits(*set_bits: int) -> str:
    return ",".join("1" if bit in set_bits else "0" for bit in range(21))


VECTORS = [None, bits(), bits(0), bits(3), bits(3, 20), bits(0, 3), bits(0, 3, 20), bits(20), f" {bits(3)} "]


def table(rows: list[tuple]) -> pd.DataFrame:
    """Pairs from (image_id, text_id, text, attributes[, group])."""
    columns = ["image_id", "text_id", "text", "attributes", "group"]
    pairs = pd.DataFrame([(*row, "all")[:5] for row in rows], columns=columns).astype("str")
    return pairs.assign(split="train", row=np.arange(1, len(rows) + 1), source="pairs.csv", path=pairs["image_id"])


def ids_of(pairs: pd.DataFrame) -> tuple[list[str], list[str]]:
    return pairs["text_id"].dropna().unique().tolist(), pairs["image_id"].dropna().unique().tolist()


@st.composite
def pair_tables(draw: st.DrawFn, attributes: list[str | None]) -> pd.DataFrame:
    row = st.tuples(
        st.sampled_from([None, "i1", "i2", "i3", "i4"]),
        st.sampled_from([None, "t1", "t2", "t3", "t4", "t5"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(attributes),
    ).filter(lambda row: row[0] or row[1])
    rows = draw(st.lists(row, max_size=12))
    return table([(image, text_id, text if text_id else None, said) for image, text_id, text, said in rows])


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_mode_is_the_reference(mode: str, data: st.DataObject) -> None:
    pairs = data.draw(pair_tables(VECTORS if mode == "attribute_inclusion" else PHRASES))
    text_ids = data.draw(st.permutations(["t1", "t2", "t3", "t4", "unknown"]))
    image_ids = data.draw(st.permutations(["i1", "i2", "i3", "nowhere"]))
    found = text_to_image_relevance(pairs, text_ids, image_ids, mode)
    assert found.dtype == bool
    assert found.has_sorted_indices
    assert found.data.all()
    np.testing.assert_array_equal(found.toarray(), reference.text_to_image_relevance(pairs, text_ids, image_ids, mode))


def test_inclusion_goes_from_the_text_to_the_image() -> None:
    pairs = table(
        [("less", "t_less", "", bits(3)), ("more", "t_more", "", bits(3, 7)), ("she", "t_she", "", bits(0, 3, 7))]
    )
    found = text_to_image_relevance(
        pairs, ["t_less", "t_more", "t_she"], ["less", "more", "she"], "attribute_inclusion"
    )
    assert found.toarray().astype(int).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_rows_without_attributes_are_right_by_id_alone() -> None:
    pairs = table(
        [("i1", "t1", "x", None), ("i2", "t2", "x", None), ("i3", "t3", "x", "Truck"), ("i4", "t4", "x", "A Truck.")]
    )
    found = text_to_image_relevance(pairs, ["t1", "t2", "t3", "t4"], ["i1", "i2", "i3", "i4"], "attribute_text")
    assert found.toarray().astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("text_ids", "image_ids"), [([], []), (["t1"], []), ([], ["i1"])])
def test_nothing_asked_or_nothing_there_is_an_empty_truth(mode: str, text_ids: list[str], image_ids: list[str]) -> None:
    for pairs in (table([]), table([("i1", "t1", "x", bits(1))])):
        assert text_to_image_relevance(pairs, text_ids, image_ids, mode).shape == (len(text_ids), len(image_ids))


def test_a_pair_that_is_repeated_many_times_is_right_once() -> None:
    # 512 is 0 in 8 bits: a sum would lose it
    pairs = table([("i1", "t1", "x", bits(2))] * 512)
    for mode in MODES:
        assert text_to_image_relevance(pairs, ["t1"], ["i1"], mode).toarray().tolist() == [[True]]


def test_ids_must_be_distinct_and_present() -> None:
    pairs = table([("i1", "t1", "x", None)])
    with pytest.raises(ValueError, match="text_ids must be distinct and present, but 't1'"):
        text_to_image_relevance(pairs, ["t1", "t1"], ["i1"], "id")
    with pytest.raises(ValueError, match="image_ids must be distinct and present, but nan"):
        text_to_image_relevance(pairs, ["t1"], ["i1", None], "id")


def test_a_broken_vector_is_told_with_file_and_row() -> None:
    pairs = table([("i1", "t1", "x", bits(1)), ("i2", "t2", "x", "A white Audi.")])
    with pytest.raises(ValueError, match=r"'pairs\.csv:2': a pedestrian vector is 21 values"):
        text_to_image_relevance(pairs, ["t1"], ["i1"], "attribute_inclusion")


def test_many_distinct_vectors_are_compared_in_blocks() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.random((3000, 21)) < 0.3
    rows = [(f"i{n}", f"t{n}", "", ",".join("1" if bit else "0" for bit in v)) for n, v in enumerate(vectors)]
    pairs = table(rows)
    found = text_to_image_relevance(pairs, *ids_of(pairs), "attribute_inclusion")
    for n in rng.choice(3000, 40, replace=False):
        right = (vectors[:, 0] == vectors[n, 0]) & ~(vectors[n] & ~vectors).any(axis=1)
        np.testing.assert_array_equal(found.indices[found.indptr[n] : found.indptr[n + 1]], np.flatnonzero(right))


def same(keys: pd.Series) -> list[list[int]]:
    return (keys.to_numpy()[:, None] == keys.to_numpy()).astype(int).tolist()


@pytest.mark.parametrize(
    ("mode", "rows", "expected"),
    [
        ("id", [("i1", "t1", "x", None), ("i1", "t2", "y", None), ("i2", "t3", "x", None)], [0, 0, 1]),
        ("text", [("i1", "t1", "x", None), ("i1", "t2", "y", None), ("i2", "t3", "x", None)], [0, 1, 0]),
        (
            "attribute_text",
            [("i1", "t", "x", "A Bus."), ("i2", "u", "y", "Bus"), ("i3", "v", "z", "A bus.")],
            [0, 0, 1],
        ),
        ("attribute_text", [("i1", "t", "x", None), ("i1", "u", "y", None), ("i3", "v", "z", None)], [0, 0, 1]),
        (
            "attribute_inclusion",
            [("i1", "t", "", bits(3)), ("i2", "u", "", f"{bits(3)} "), ("i3", "v", "", bits(3, 4))],
            [0, 0, 1],
        ),
        ("id", [(None, "t1", "x", None), (None, "t2", "x", None), ("i2", "t3", "x", None)], [0, 1, 2]),
        ("text", [(None, "t1", "x", None), ("i1", None, None, None), ("i2", None, None, None)], [0, 1, 2]),
        ("id", [], []),
    ],
)
def test_rows_with_equal_keys_are_those_of_the_mode(mode: str, rows: list[tuple], expected: list[int]) -> None:
    keys = relevance_keys(table(rows), RelevanceConfig(default=mode))
    assert keys.dtype == np.int64
    assert same(keys) == same(pd.Series(expected, dtype=int))


def test_keys_of_groups_are_apart_and_follow_the_index() -> None:
    rows = [("i1", "t1", "x", "Bus", "cars"), ("i2", "t2", "x", "Bus", "toys"), ("i3", "t3", "y", "Bus", "cars")]
    rows += [("i3", "t4", "z", None, "faces"), ("i3", "t5", "y", None, "cars")]
    pairs = table(rows).set_axis([7, 7, 5, 1, 0])
    config = RelevanceConfig(default="id", groups={"cars": "attribute_text", "toys": "attribute_text"})
    keys = relevance_keys(pairs, config)
    assert keys.index.tolist() == [7, 7, 5, 1, 0]
    assert same(keys) == same(pd.Series([0, 1, 0, 2, 2]))


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_equal_keys_say_that_each_text_is_right_for_the_others_image(mode: str, data: st.DataObject) -> None:
    pairs = data.draw(pair_tables(VECTORS if mode == "attribute_inclusion" else PHRASES))
    pairs = pairs.dropna(subset=["image_id", "text_id"]).drop_duplicates("text_id").reset_index(drop=True)
    keys = relevance_keys(pairs, RelevanceConfig(default=mode)).to_numpy()
    truth = text_to_image_relevance(pairs, pairs["text_id"].tolist(), sorted(set(pairs["image_id"])), mode).toarray()
    image = np.searchsorted(sorted(set(pairs["image_id"])), pairs["image_id"].tolist())
    for a, b in np.argwhere(keys[:, None] == keys):
        assert truth[a, image[b]]
        assert truth[b, image[a]]
