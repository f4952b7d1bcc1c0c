"""Submission files have the layout, the order and the names that the contests ask for."""

import json

import pandas as pd
import pytest

from xmodal_kedro.reporting.submission import matching_csv, track2_submission

TEXTS = pd.DataFrame({"text_id": ["t:2", "t:1"], "text": ["This is a white Audi. ", "一辆白车"]})


def ranked(per_query: int = 3) -> pd.DataFrame:
    rows = [
        {"query_id": query, "rank": rank, "gallery_id": f"test/test_images/{name}{rank}.jpg", "score": 1 / rank}
        for query, name in [("t:1", "b"), ("t:2", "a")]
        for rank in range(per_query, 0, -1)
    ]
    return pd.DataFrame(rows)


def test_track2_layout():
    found = track2_submission(TEXTS, ranked(), 2)
    assert found == {
        "results": [
            {"text": "This is a white Audi.", "image_names": ["a1.jpg", "a2.jpg"]},
            {"text": "一辆白车", "image_names": ["b1.jpg", "b2.jpg"]},
        ]
    }
    assert json.loads(json.dumps(found, indent=4, ensure_ascii=False)) == found


def test_the_same_text_asked_twice_has_two_entries():
    texts = TEXTS.assign(text="same")
    assert [entry["image_names"] for entry in track2_submission(texts, ranked(), 1)["results"]] == [
        ["a1.jpg"],
        ["b1.jpg"],
    ]


def test_a_small_gallery_gives_what_it_has_and_an_empty_one_is_refused():
    assert [len(entry["image_names"]) for entry in track2_submission(TEXTS, ranked(), 10)["results"]] == [3, 3]
    with pytest.raises(ValueError, match=r"query t:1 .* has no ranked images"):
        track2_submission(TEXTS, ranked().query("query_id == 't:2'"), 3)


def test_images_that_share_a_name_are_told_apart_by_their_path():
    table = ranked().assign(gallery_id=["x/1.jpg", "2.jpg", "3.jpg", "y/1.jpg", "2.jpg", "3.jpg"])
    names = [entry["image_names"] for entry in track2_submission(TEXTS, table, 3)["results"]]
    assert sorted(name for found in names for name in found) == [
        "2.jpg",
        "2.jpg",
        "3.jpg",
        "3.jpg",
        "x/1.jpg",
        "y/1.jpg",
    ]


def test_matching_column(tmp_path):
    matched = pd.DataFrame({"group": ["all"], "text_id": ["t:1"], "image_id": ["images/5.jpg"]})
    found = matching_csv(TEXTS, matched, "name")
    assert found.to_dict("list") == {"name": ["", "5.jpg"]}
    found.to_csv(tmp_path / "result.csv", index=False)
    assert (tmp_path / "result.csv").read_text() == 'name\n""\n5.jpg\n'
    assert matching_csv(TEXTS, matched.iloc[:0]).to_dict("list") == {"image_name": ["", ""]}


@pytest.mark.parametrize("column", ["text_id", "image_id"])
def test_not_one_to_one_is_refused(column):
    matched = pd.DataFrame({"group": "all", "text_id": ["t:1", "t:2"], "image_id": ["5.jpg", "6.jpg"]})
    matched[column] = matched[column].iloc[0]
    with pytest.raises(ValueError, match=f"{column} {matched[column].iloc[0]} is matched twice"):
        matching_csv(TEXTS, matched)
