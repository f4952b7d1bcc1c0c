"""The sentences of an image: distinct, in the order of the table, of its split alone."""

import pandas as pd

from xmodal_kedro.captioning.references import references_of

ROWS = [
    ("val", "b", "a dog"),
    ("train", "z", "not of this split"),
    ("val", "a", "two cats"),
    ("val", "b", "a brown dog"),
    ("val", "b", "a dog"),
    ("val", "a", "a dog"),
    ("val", "c", None),
    ("val", None, "a query without an image"),
    ("dev", "b", "of dev"),
    ("test", "t", None),
]


def captions() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=["split", "image_id", "text"]).astype("str")


def test_sentences_are_distinct_and_in_the_order_of_the_table() -> None:
    found = references_of(captions(), "val")
    assert found == {"b": ["a dog", "a brown dog"], "a": ["two cats", "a dog"]}
    assert list(found) == ["b", "a"]


def test_an_image_of_two_splits_has_the_sentences_of_each() -> None:
    assert references_of(captions(), "dev") == {"b": ["of dev"]}


def test_a_split_without_texts_or_rows_has_no_references() -> None:
    assert references_of(captions(), "test") == {}
    assert references_of(captions().iloc[:0], "val") == {}


def test_the_table_is_left_as_it_is() -> None:
    table = captions()
    before = table.copy()
    references_of(table, "val")
    pd.testing.assert_frame_equal(table, before)
