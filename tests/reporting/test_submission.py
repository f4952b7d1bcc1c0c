"""Submission files have the layout, the order and the names that the contests ask for."""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from xmodal_kedro.config.data import DataConfig
from xmodal_kedro.config.ensemble import EnsembleConfig
from xmodal_kedro.data.readers import read_pairs
from xmodal_kedro.pipelines.ensemble.nodes import write_submission
from xmodal_kedro.reporting.submission import (
    TemplateError,
    fill_template,
    matching_csv,
    query_cells,
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


CELLS = pd.DataFrame({"idx": ["7", "8", "9"], "day": ["mon", "mon", "tue"]})


def filled_by_cells(folder: Path, sample: str, cells: pd.DataFrame = CELLS) -> list[str]:
    (folder / "sample.csv").write_text(sample)
    table = fill_template(folder / "sample.csv", ANSWERS, QUERIES, {"text": "text"}, "key", lambda: cells)
    return table["image_name"].tolist()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("idx,image_name\n9,?\n7,?\n 8,?\n", ["z.jpg", "x.jpg", ""]),
        ("idx,day,image_name\n9,tue,?\n7,mon,?\n8,mon,?\n", ["z.jpg", "x.jpg", ""]),
        ("day,image_name\nmon,?\nmon,?\ntue,?\n", ["x.jpg", "", "z.jpg"]),
        ("note,image_name\n9,?\n7,?\n8,?\n", ["x.jpg", "", "z.jpg"]),
        ('idx,text,image_name\n9,红色,?\n8,"a, b",?\n7,一辆白车,?\n', ["z.jpg", "", "x.jpg"]),
    ],
)
def test_rows_are_told_by_a_column_that_the_recipe_does_not_name(
    tmp_path: Path, sample: str, expected: list[str]
) -> None:
    assert filled_by_cells(tmp_path, sample) == expected


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("idx,image_name\n9,?\n7,?\n6,?\n", r"sample\.csv, row 2: idx is '9', .*file of the queries it is '7'"),
        ("day,image_name\nmon,?\ntue,?\nmon,?\n", r"sample\.csv, row 3: day is 'tue', .* it is 'mon'"),
        ("idx,day,image_name\n9,mon,?\n7,mon,?\n8,mon,?\n", r"row 2: day is 'mon', .* it is 'tue'"),
        ("idx,text,image_name\n9,一辆白车,?\n7,红色,?\n8,x,?\n", r"row 2: text is '一辆白车', but the query is '红色'"),
    ],
)
def test_rows_that_cannot_be_told_apart_are_refused(tmp_path: Path, sample: str, message: str) -> None:
    with pytest.raises(TemplateError, match=rf"^key: .*{message}"):
        filled_by_cells(tmp_path, sample)


def test_a_column_that_some_queries_lack_is_not_compared(tmp_path: Path) -> None:
    cells = CELLS.assign(idx=["7", None, "9"])
    assert filled_by_cells(tmp_path, "idx,image_name\n9,?\n7,?\n8,?\n", cells) == ["x.jpg", "", "z.jpg"]


def test_an_undecodable_sample_file_is_named_with_the_encodings(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_bytes("image_name\n一辆白车\n".encode() + b"\xff\n")
    with pytest.raises(TemplateError, match=r"sample\.csv cannot be read \(it holds bytes .* UTF-8, UTF-16 .* GB18030"):
        fill_template(tmp_path / "sample.csv", ANSWERS, QUERIES, SHOWN, "key")


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


def without_ids(data: DataConfig) -> DataConfig:
    """The same sources, but the recipe does not name the column of ids, as that of iflytek."""
    sources = [s.model_copy(update={"columns": s.columns.model_copy(update={"text_id": None})}) for s in data.sources]
    return data.model_copy(update={"sources": sources})


def test_all_columns_of_the_queries_are_read_in_their_order(tmp_path: Path) -> None:
    data = without_ids(iflytek(tmp_path))
    texts = read_pairs(data, tmp_path).pairs.dropna(subset=["text_id"]).query("split == 'test'")
    cells = query_cells(data, "test", texts.iloc[::-1], tmp_path)
    assert cells["idx"].tolist() == ["9", "7", "12"]
    assert cells["text"].tolist() == ["第一", "第二", "第一"]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("idx,image_name\n9,?\n12,?\n7,?\n", "idx,image_name\n9,\n12,3.jpg\n7,4.jpg\n"),
        ("image_name\n?\n?\n?\n", 'image_name\n3.jpg\n4.jpg\n""\n'),
    ],
)
def test_a_sample_file_is_filled_by_ids_that_the_recipe_does_not_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sample: str, expected: str
) -> None:
    data = without_ids(iflytek(tmp_path))
    (tmp_path / "sample_submit.csv").write_text(sample)
    pairs = read_pairs(data, tmp_path).pairs
    queries = pairs.query("split == 'test'")["text_id"].dropna().tolist()
    ranking = pd.DataFrame(
        {"split": "test", "direction": "t2i", "query_id": queries, "rank": 1, "gallery_id": "3.jpg", "score": 1.0}
    )
    matching = pd.DataFrame(
        {"split": "test", "group": "all", "text_id": queries[:2], "image_id": ["3.jpg", "4.jpg"], "score": 1.0}
    )
    ensemble = EnsembleConfig.model_validate({"submission": {"split": "test", "template": "sample_submit.csv"}})
    _, table = write_submission(pairs, ranking, matching, ensemble, data)
    table.to_csv(tmp_path / "result.csv", index=False)
    assert (tmp_path / "result.csv").read_text() == expected
    assert [record.getMessage() for record in caplog.records] == [
        "1 of the 3 texts of test are matched to no image: their cells are empty"
    ]


@pytest.mark.parametrize(
    ("there", "split"), [(["dev", "val", "test"], "test"), (["dev", "val"], "val"), (["dev"], "dev")]
)
def test_the_first_split_with_texts_is_handed_in(tmp_path: Path, there: list[str], split: str) -> None:
    splits = ["dev", "val", "test"]
    pairs = pd.DataFrame(
        {
            "split": splits,
            "text_id": [f"t-{one}" if one in there else None for one in splits],
            "text": "a",
            "group": "all",
        }
    )
    ranking = pd.DataFrame(
        [(one, "t2i", f"t-{one}", 1, f"{one}.jpg") for one in there],
        columns=["split", "direction", "query_id", "rank", "gallery_id"],
    )
    matching = pd.DataFrame({"split": there, "group": "all", "text_id": [f"t-{one}" for one in there]})
    matching["image_id"] = [f"{one}.jpg" for one in there]
    data = without_ids(iflytek(tmp_path))
    answers, table = write_submission(pairs, ranking, matching, EnsembleConfig(), data)
    assert f"{split}.jpg" in str(answers)
    assert table["image_name"].tolist() == [f"{split}.jpg"]
