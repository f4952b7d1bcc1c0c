"""Submission files have the layout, the order and the names that the contests ask for."""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from xmodal_kedro.config.data import DataConfig
from xmodal_kedro.data.readers import read_pairs
from xmodal_kedro.reporting.submission import (
    TemplateError,
    fill_template,
    matching_csv,
    shown_columns,
    track2_submission,
)

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


QUERIES = pd.DataFrame({"text_id": ["1", "2", "3"], "text": ["一辆白车", "a, b", "红色"]})
ANSWERS = pd.DataFrame({"image_name": ["x.jpg", "", "z.jpg"]})
SHOWN = {"idx": "text_id", "text": "text"}


def filled(folder: Path, sample: str, encoding: str = "utf-8", answers: pd.DataFrame = ANSWERS) -> pd.DataFrame:
    (folder / "sample.csv").write_bytes(sample.encode(encoding))
    return fill_template(folder / "sample.csv", answers, QUERIES, SHOWN, "ensemble.submission.template")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_sample_file_is_filled_in(tmp_path: Path, encoding: str) -> None:
    sample = 'idx,text,image_name,note\n1,一辆白车,?,007\n2,"a, b",?,NA\n3,红色,?,\n'
    table = filled(tmp_path, sample, encoding)
    table.to_csv(tmp_path / "result.csv", index=False)
    expected = 'idx,text,image_name,note\n1,一辆白车,x.jpg,007\n2,"a, b",,NA\n3,红色,z.jpg,\n'
    assert (tmp_path / "result.csv").read_text(encoding="utf-8") == expected


def test_rows_of_a_sample_file_keep_their_order(tmp_path: Path) -> None:
    table = filled(tmp_path, "image_name,idx\n?,3\n?,1\n?, 2\n")
    assert table.to_numpy().tolist() == [["z.jpg", "3"], ["x.jpg", "1"], ["", " 2"]]


def test_a_sample_file_of_one_column_is_filled_in_the_order_of_the_queries(tmp_path: Path) -> None:
    assert filled(tmp_path, "image_name\n?\n?\n?\n").to_dict("list") == ANSWERS.to_dict("list")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("idx,name\n1,?\n", r"sample\.csv has no column 'image_name', .* it has 'idx', 'name'"),
        ("image_name\n?\n?\n", r"sample\.csv has 2 rows, but there are 3 queries"),
        ("image_name\n?\n?\n?\n?\n", r"has 4 rows, but there are 3 queries"),
        ("idx,image_name\n1,?\n3,?\n", r"has 2 rows, but there are 3 queries; idx '2' is not among them"),
        ("idx,image_name\n1,?\n4,?\n2,?\n", r"sample\.csv, row 3: idx '4' is no query"),
        ("idx,image_name\n1,?\n2,?\n1,?\n3,?\n", r"sample\.csv, row 4: idx '1' stands there twice"),
        (
            'text,image_name\n一辆白车,?\n红色,?\n"a, b",?\n',
            r"sample\.csv, row 3: text is '红色', but the query is 'a, b'",
        ),
        ("idx,text,image_name\n3,红色,?\n1,红,?\n2,x,?\n", r"row 3: text is '红', but the query is '一辆白车'"),
        ("", r"sample\.csv cannot be read"),
        ("a,b\n1,2,3\n1,2,3,4\n", r"sample\.csv cannot be read"),
    ],
)
def test_a_sample_file_that_does_not_fit_is_refused(tmp_path: Path, sample: str, message: str) -> None:
    with pytest.raises(TemplateError, match=rf"^ensemble\.submission\.template: .*{message}"):
        filled(tmp_path, sample)


def test_a_sample_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"nothing\.csv cannot be read"):
        fill_template(tmp_path / "nothing.csv", ANSWERS, QUERIES, SHOWN, "key")


def iflytek(folder: Path) -> DataConfig:
    """The layout of the contest, small."""
    images = folder / "dataset/images"
    images.mkdir(parents=True)
    for name in range(6):
        Image.new("RGB", (8, 8), (40 * name, 0, 0)).save(images / f"{name}.jpg")
    (folder / "dataset/train.csv").write_text("image_name,text\n0.jpg,白车\n1.jpg,黑车\n2.jpg,红车\n")
    (folder / "dataset/test_candidate_image.csv").write_text("image_name\n5.jpg\n3.jpg\n4.jpg\n")
    (folder / "dataset/test_candidate_text.csv").write_text("idx,text\n12,第一\n7,第二\n9,第一\n")
    (folder / "sample_submit.csv").write_text("idx,image_name\n12,0.jpg\n7,0.jpg\n9,0.jpg\n")
    table: dict = {"format": "table", "images": "dataset/images"}
    return DataConfig.model_validate(
        {
            "root": str(folder),
            "sources": [
                {**table, "split": "train", "file": "dataset/train.csv", "columns": {"image": "image_name"}},
                {
                    **table,
                    "split": "test",
                    "file": "dataset/test_candidate_image.csv",
                    "columns": {"image": "image_name", "text": None},
                },
                {
                    "format": "table",
                    "split": "test",
                    "file": "dataset/test_candidate_text.csv",
                    "columns": {"image": None, "text": "text", "text_id": "idx"},
                },
            ],
        }
    )


def test_the_layout_of_iflytek_is_read_and_answered(tmp_path: Path) -> None:
    data = iflytek(tmp_path)
    read = read_pairs(data, tmp_path)
    assert read.quarantine.empty
    test = read.pairs[read.pairs["split"] == "test"]
    assert test["text_id"].dropna().tolist() == ["12", "7", "9"]
    assert test["text"].dropna().tolist() == ["第一", "第二", "第一"]
    assert test["image_id"].dropna().tolist() == [f"dataset/images/{name}.jpg" for name in (5, 3, 4)]
    assert set(test["group"]) == {"all"}
    assert shown_columns(data, "test") == SHOWN
    texts = test.dropna(subset=["text_id"])
    images = test["image_id"].dropna().tolist()
    matched = pd.DataFrame({"group": "all", "text_id": ["9", "12", "7"], "image_id": images})
    answers = matching_csv(texts, matched)
    table = fill_template(tmp_path / "sample_submit.csv", answers, texts, shown_columns(data, "test"), "key")
    table.to_csv(tmp_path / "result.csv", index=False)
    assert (tmp_path / "result.csv").read_text() == "idx,image_name\n12,3.jpg\n7,4.jpg\n9,5.jpg\n"
