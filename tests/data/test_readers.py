"""Each format becomes the same pair table, and each fault costs its row and says why."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal_kedro.config.data import Columns, Source
from xmodal_kedro.data.image_bytes import image_bytes
from xmodal_kedro.data.readers import PAIR_COLUMNS, READERS, Read, SourceError, read_source
from xmodal_kedro.data.readers.rows import NO_TEXT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "photos" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.png", "deep/d.JPG", "000055.jpg", "1001.jpg", "1002.jpg"):
        (root / "photos" / name).write_bytes(name.encode())
    (tmp_path / "x.jpg").touch()
    (root / "photos" / "link.jpg").symlink_to(tmp_path / "x.jpg")
    return root


def read(root: Path, file: str | None, content: str | bytes | None = None, **source: Any) -> Read:
    """Write a file where there is content, and read it as a source with images in `photos`."""
    if content is not None:
        (root / str(file)).write_bytes(content.encode() if isinstance(content, str) else content)
    source = {"split": "train", "format": "table", "images": "photos"} | source
    columns = Columns(**source.pop("columns", {}))
    return read_source(root, Source(file=file, columns=columns, **source), [])


def reasons(found: Read) -> list[tuple[int, str]]:
    return list(zip(found.quarantine["row"], found.quarantine["reason"], strict=True))


def test_columns_and_types(root: Path) -> None:
    found = read(root, "a.csv", "image,text\na.jpg, A dog. \n")
    assert list(found.pairs.columns) == PAIR_COLUMNS
    assert found.pairs["row"].dtype == "int64"
    assert all(str(found.pairs[name].dtype) == "str" for name in PAIR_COLUMNS if name != "row")
    row = found.pairs.iloc[0]
    assert row["image_id"] == row["path"] == "photos/a.jpg"
    assert (row["text_id"], row["text"], row["group"], row["split"]) == ("a.csv:2", "A dog.", "all", "train")
    assert (row["row"], row["source"]) == (2, "a.csv")
    assert pd.isna(row["attributes"])
    assert found.rows == 1
    assert found.quarantine.empty


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_separators_line_ends_and_encodings(root: Path, separator: str, ends: str, encoding: str) -> None:
    lines = ["编号,图片,描述", "1,a.jpg,草地上的狗。", '2,b.jpg,"一只狗,; 一只\t猫\n两行"', "3,c.png,海", ""]
    text = "\n".join(line.replace(",", separator) if "狗,;" not in line else line for line in lines)
    text = text.replace("2,b.jpg,", separator.join(("2", "b.jpg", ""))).replace("\n", ends)
    found = read(root, "表.csv", text.encode(encoding), columns={"image": "图片", "text": "描述", "text_id": "编号"})
    assert found.pairs["text"].tolist() == ["草地上的狗。", "一只狗,; 一只\t猫\n两行", "海"]
    assert found.pairs["row"].tolist() == [2, 3, 5]
    assert found.pairs["text_id"].tolist() == ["1", "2", "3"]
    assert found.quarantine.empty


def test_separator_and_encoding_of_the_config(root: Path) -> None:
    found = read(root, "a.txt", "image|text\na.jpg|café\n".encode("latin-1"), separator="|", encoding="latin-1")
    assert found.pairs["text"].tolist() == ["café"]
    with pytest.raises(SourceError, match=r"data\.sources\.separator: '\|\|'"):
        read(root, "a.txt", separator="||")
    with pytest.raises(SourceError, match=r"data\.sources\.encoding: .*a\.txt: encoding 'x' does not exist"):
        read(root, "a.txt", encoding="x")


def test_a_comma_in_a_header_does_not_mislead(root: Path) -> None:
    assert len(read(root, "a.tsv", "image\ttext\ta,b,c,d\na.jpg\tdog, cat\t1\n").pairs) == 1


def test_one_bad_byte_costs_one_row(root: Path) -> None:
    content = "image,text\na.jpg,草地上的狗\nb.jpg,海边\n".encode() + b"c.png,\xe6\x97dog\n" + "a.jpg,第二\n".encode()
    found = read(root, "a.csv", content)
    assert found.pairs["text"].tolist() == ["草地上的狗", "海边", "第二"]
    assert found.rows == 4
    ((row, reason),) = reasons(found)
    assert row == 4
    assert "encoding" in reason


@pytest.mark.parametrize("text", ["", "  ", "nan", "NaN", "null", "None"])
def test_empty_captions(root: Path, text: str) -> None:
    found = read(root, "a.csv", f"image,text\na.jpg,{text}\nb.jpg,Nancy\n")
    assert reasons(found) == [(2, "text is empty")]
    assert found.pairs["text"].tolist() == ["Nancy"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../x.jpg", "'..'"),
        ("/etc/x.jpg", "absolute"),
        ("C:\\x.jpg", "drive letter"),
        ("link.jpg", "symlink"),
        ("a\0.jpg", "NUL"),
        ("no.jpg", "does not exist"),
        ("", "image is empty"),
    ],
)
def test_bad_paths(root: Path, image: str, reason: str) -> None:
    found = read(root, "a.csv", f"image,text\n{image},a dog\nb.jpg,a cat\n")
    assert found.pairs["path"].tolist() == ["photos/b.jpg"]
    ((row, said),) = reasons(found)
    assert row == 2
    assert reason in said
    assert found.quarantine["kind"].tolist() == ["row"]


def test_stray_quotes_cost_their_row_only(root: Path) -> None:
    good = "".join(f"a.jpg,caption {number}\n" for number in range(50))
    found = read(root, "a.csv", f'image,text\nb.jpg,"never closed\n{good}')
    assert len(found.pairs) == 50
    assert [row for row, _ in reasons(found)] == [2]
    found = read(root, "a.csv", f'image,text\nb.jpg,"open, shut\n{good}c.png,"open again\n{good}')
    assert len(found.pairs) == 100
    assert [row for row, _ in reasons(found)] == [2, 53]
    found = read(root, "a.csv", 'image,text\nb.jpg,a 5" screen\na.jpg,"He said ""hi"", twice"\n')
    assert found.pairs["text"].tolist() == ['a 5" screen', 'He said "hi", twice']


def test_long_files_with_many_stray_quotes_stay_fast(root: Path) -> None:
    content = "image,text\n" + "".join(f'b.jpg,"open {number}\n' for number in range(3001))
    found = read(root, "a.csv", content)
    assert found.rows == len(found.quarantine) == 3001


def test_wrong_number_of_fields(root: Path) -> None:
    found = read(root, "a.csv", "image,text,more\na.jpg,one, two,3\nb.jpg\n\n,,\na.jpg,fine,3,,\n")
    assert [row for row, _ in reasons(found)] == [2, 3]
    assert found.pairs["row"].tolist() == [6]
    assert found.rows == 3


def test_several_captions_per_image(root: Path) -> None:
    content = "image,one,two,three\na.jpg,dog,,hund\nb.jpg,,,\na.jpg,,,chien\n"
    found = read(root, "a.csv", content, columns={"text": ["one", "two", "three"]})
    assert found.pairs["text"].tolist() == ["dog", "hund", "chien"]
    assert found.pairs["text_id"].tolist() == ["a.csv:2#0", "a.csv:2#2", "a.csv:4#2"]
    assert reasons(found) == [(3, "text is empty")]


def test_ids_attributes_and_groups_of_the_user(root: Path) -> None:
    content = "id,image,text,bits,kind,tid\n7,a.jpg,dog,'0,x.  ,car,t1\n8,b.jpg,cat,,,t2\n9,c.png,cow,,van,\n"
    names = {"image_id": "id", "attributes": "bits", "group": "kind", "text_id": "tid"}
    found = read(root, "a.csv", content.replace("'0,x", "'0;x"), columns=names)
    assert found.pairs[["image_id", "text_id", "group", "attributes"]].to_numpy().tolist() == [
        ["7", "t1", "car", "'0;x."]
    ]
    assert [row for row, _ in reasons(found)] == [3, 4]


def test_missing_columns_and_files_name_the_key(root: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read(root, "a.csv", "image,captoin\na.jpg,dog\n", columns={"text": "caption"})
    for part in ("data.sources.columns.text", "a.csv", "'caption'", "'image', 'captoin'", "Did you mean 'captoin'?"):
        assert part in str(caught.value)
    with pytest.raises(SourceError, match=r"columns\.text: a\.csv has 2 columns 'text'"):
        read(root, "a.csv", "image,text,text\na.jpg,dog,cat\n")
    with pytest.raises(SourceError, match=r"data\.sources\.file: .*no\.csv does not exist"):
        read(root, "no.csv")
    with pytest.raises(SourceError, match=r"data\.sources\.images: .*nowhere: folder does not exist"):
        read(root, "a.csv", "image,text\na.jpg,dog\n", images="nowhere")
    for content, said in (("", "is empty"), ("image,text\n", "has no rows")):
        with pytest.raises(SourceError, match=said):
            read(root, "a.csv", content)


def test_blind_tables(root: Path) -> None:
    gallery = read(root, "g.csv", "image\na.jpg\nb.jpg\n", split="test", columns={"text": None})
    assert gallery.pairs["path"].tolist() == ["photos/a.jpg", "photos/b.jpg"]
    assert gallery.pairs[["text", "text_id"]].isna().all(axis=None)
    queries = read(root, "q.csv", "idx,text\n0,dog\n1,dog\n", split="test", columns={"image": None, "text_id": "idx"})
    assert queries.pairs["text_id"].tolist() == ["0", "1"]
    assert queries.pairs[["image_id", "path"]].isna().all(axis=None)
    mixed = read(root, "m.csv", "image,text\na.jpg,\n,dog\n,\n", split="test")
    assert len(mixed.pairs) == 2
    with pytest.raises(SourceError, match="split 'train' needs pairs, and this source has no texts"):
        read(root, "g.csv", columns={"text": None})


def test_jsonl(root: Path) -> None:
    lines: list[object] = [
        {"text_id": 8, "text": "狗", "image_ids": [1001, 1002]},
        {"text_id": 9, "text": ["dog", None, "hund"], "image_ids": "a.jpg", "extra": {"x": 1}},
        {"text_id": 10, "image_ids": [1001]},
        {"text_id": 11, "text": {"en": "dog"}, "image_ids": [1001]},
        {"text_id": 12, "text": "half", "image_ids": [1001, 77]},
        ["no object"],
        {"text_id": 13, "text": "\ud800", "image_ids": [1001]},
        {"text_id": 14, "text": float("nan"), "image_ids": [1001]},
    ]
    content = "\n".join([*map(json.dumps, lines), "{broken", ""])
    found = read(root, "a.jsonl", content, format="jsonl", columns={"image": "image_ids", "text_id": "text_id"})
    assert found.pairs[["path", "text_id", "text"]].to_numpy().tolist() == [
        ["photos/1001.jpg", "8", "狗"],
        ["photos/1002.jpg", "8", "狗"],
        ["photos/a.jpg", "9#0", "dog"],
        ["photos/a.jpg", "9#2", "hund"],
        ["photos/1001.jpg", "12", "half"],
    ]
    assert dict(reasons(found)).keys() == {3, 4, 5, 6, 7, 8, 9}
    assert found.rows == 9
    assert "dict" in dict(reasons(found))[4]


def test_jsonl_blind_test_of_chinese_clip(root: Path) -> None:
    content = '{"text_id": 1, "text": "狗", "image_ids": []}\n'
    found = read(root, "a.jsonl", content, format="jsonl", split="test", columns={"image": "image_ids"})
    assert found.pairs["path"].isna().all()
    assert found.pairs["text"].tolist() == ["狗"]


def test_jsonl_lists_of_ids(root: Path) -> None:
    rows = [
        {"image": ["a.jpg", "b.jpg"], "id": [1, 2], "text": ["x", "y"], "tid": [5, 6]},
        {"image": ["a.jpg", "b.jpg"], "id": 1, "text": "x", "tid": 7},
        {"image": "a.jpg", "id": 1, "text": ["x", "y"], "tid": [8]},
    ]
    content = "\n".join(map(json.dumps, rows))
    found = read(root, "a.jsonl", content, format="jsonl", columns={"image_id": "id", "text_id": "tid"})
    ids = found.pairs[["image_id", "text_id"]].to_numpy().tolist()
    assert ids == [["1", "5"], ["1", "6"], ["2", "5"], ["2", "6"]]
    assert [row for row, _ in reasons(found)] == [2, 3]


def test_jsonl_faults_of_the_whole_file(root: Path) -> None:
    with pytest.raises(SourceError, match=r"columns\.text: a\.jsonl has no column 'text'; it has 'image', 'caption'"):
        read(root, "a.jsonl", '{"image": "a.jpg", "caption": "dog"}\n', format="jsonl")
    with pytest.raises(SourceError, match="one JSON array"):
        read(root, "a.jsonl", '[{"image": "a.jpg", "text": "dog"}]', format="jsonl")


def test_track2(root: Path) -> None:
    bits = ",".join(["0", "1", "0"] * 7)
    content = f"a.jpg$A white Audi. $This is a white Audi.\r\n000055${bits}$He walks.\n\nb.jpg$x\nb.jpg$a$b$c\n"
    found = read(root, "train_label.txt", content, format="track2")
    assert found.pairs["path"].tolist() == ["photos/a.jpg", "photos/000055.jpg"]
    assert found.pairs["attributes"].tolist() == ["A white Audi.", bits]
    assert found.pairs["group"].tolist() == ["vehicle", "pedestrian"]
    assert found.pairs["row"].tolist() == [1, 2]
    assert [row for row, _ in reasons(found)] == [4, 5]


def test_queries(root: Path) -> None:
    content = "A white Audi.\r\nA white Audi.\n\n He walks, slowly. \n\n"
    found = read(root, "q.txt", content, format="queries", split="test", images=None, group="vehicle")
    assert found.pairs["text"].tolist() == ["A white Audi.", "A white Audi.", "He walks, slowly."]
    assert found.pairs["text_id"].tolist() == ["q.txt:1", "q.txt:2", "q.txt:4"]
    assert found.pairs["path"].isna().all()
    assert set(found.pairs["group"]) == {"vehicle"}
    assert len(reasons(found)) == 1


def test_folder_as_a_gallery(root: Path) -> None:
    (root / "photos" / ".hidden.jpg").touch()
    (root / "photos" / "notes.md").touch()
    found = read(root, None, format="folder", split="test")
    names = ["000055.jpg", "1001.jpg", "1002.jpg", "a.jpg", "b.jpg", "c.png", "deep/d.JPG"]
    assert found.pairs["path"].tolist() == [f"photos/{name}" for name in names]
    assert found.pairs["text"].isna().all()
    assert found.quarantine["key"].tolist() == ["photos/link.jpg"]
    with pytest.raises(SourceError, match=r"data\.sources: the images of photos have no captions"):
        read(root, None, format="folder", split="train")
    whole = read(root, None, format="folder", split="val", images=".")
    assert whole.pairs["path"].tolist() == found.pairs["path"].tolist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "filename,caption\na.jpg,dog\ndeep/d.JPG,cat\n"),
        ("captions.tsv", "filename\tcaption\na.jpg\tdog\ndeep/d.JPG\tcat\n"),
        ("captions.txt", "filename,caption\na.jpg,dog\ndeep/d.JPG,cat\n"),
        ("c.jsonl", '{"filename": "a.jpg", "caption": "dog"}\n{"filename": "deep/d.JPG", "caption": "cat"}\n'),
    ],
)
def test_folder_with_a_captions_file(root: Path, name: str, content: str) -> None:
    found = read(root, name, content, format="folder", columns={"image": "filename", "text": "caption"})
    assert found.pairs[["path", "text"]].to_numpy().tolist() == [["photos/a.jpg", "dog"], ["photos/deep/d.JPG", "cat"]]


def test_folder_with_captions_beside_the_images(root: Path) -> None:
    (root / "photos" / "a.txt").write_bytes("狗\r\n\n一只狗\n".encode("gb18030"))
    (root / "photos" / "deep" / "d.txt").write_text("cat")
    (root / "photos" / "b.txt").write_text("\n")
    (root / "photos" / "c.txt").write_bytes(b"\0" * 90)
    (root.parent / "secret.txt").write_text("secret")
    (root / "photos" / "1001.txt").symlink_to(root.parent / "secret.txt")
    found = read(root, None, format="folder")
    assert found.pairs[["path", "text", "text_id"]].to_numpy().tolist() == [
        ["photos/a.jpg", "狗", "photos/a.txt:1"],
        ["photos/a.jpg", "一只狗", "photos/a.txt:3"],
        ["photos/deep/d.JPG", "cat", "photos/deep/d.txt:1"],
    ]
    assert dict(zip(found.quarantine["key"], found.quarantine["reason"], strict=True)).keys() == {
        "text",  # images without captions, and an empty captions file
        "photos/c.txt",  # binary
        "photos/1001.txt",  # a symlink out of the root
    }
    assert read(root, None, format="folder", split="test").pairs["text"].isna().sum() == 3


def write_shards(root: Path) -> None:
    rows = [
        {"image": {"bytes": b"one", "path": "x.jpg"}, "name": "x", "caption": ["dog", "hund"], "id": 1.0},
        {"image": {"bytes": b"two", "path": "y.jpg"}, "name": "y", "caption": ["cat"], "id": None},
        {"image": {"bytes": b"one", "path": "x.jpg"}, "name": "x", "caption": ["chien"], "id": 3.0},
        {"image": {"bytes": b"other", "path": "x.jpg"}, "name": "x", "caption": [], "id": 4.0},
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("plain", pa.array([row["image"]["bytes"] for row in rows], pa.binary()))
    (root / "shards").mkdir()
    for shard in ("s-0.parquet", "s-1.parquet"):
        pq.write_table(table, root / "shards" / shard, row_group_size=2)


def test_parquet_with_bytes_inside(root: Path) -> None:
    write_shards(root)
    found = read(root, "shards/*.parquet", format="parquet", columns={"bytes": "image", "text": "caption"})
    first = found.pairs[found.pairs["source"] == "shards/s-0.parquet"]
    assert first["image_id"].tolist() == [f"shards/s-0.parquet/{name}.jpg" for name in "xxyx"]
    assert first["path"].tolist() == [f"shards/s-0.parquet::{row}::image" for row in (0, 0, 1, 0)]
    assert first["text_id"].tolist() == [f"shards/s-0.parquet:{row}" for row in ("1#0", "1#1", "2", "3")]
    assert [image_bytes(root, path) for path in first["path"]] == [b"one", b"one", b"two", b"one"]
    assert found.rows == 8
    assert found.quarantine["reason"].tolist() == ["text is empty"] * 2
    assert found.quarantine["source"].tolist() == ["shards/s-0.parquet", "shards/s-1.parquet"]


def test_parquet_names_and_ids(root: Path) -> None:
    write_shards(root)
    columns = {"bytes": "plain", "image": "name", "text": "caption"}
    named = read(root, "shards/s-0.parquet", format="parquet", columns=columns)
    assert named.pairs["image_id"].tolist()[:3] == ["shards/s-0.parquet/x"] * 2 + ["shards/s-0.parquet/y"]
    by_row = read(root, "shards/s-0.parquet", format="parquet", columns=columns | {"image": None})
    assert by_row.pairs["image_id"].tolist() == [f"shards/s-0.parquet/{row}" for row in (0, 0, 1, 2)]
    by_id = read(root, "shards/s-0.parquet", format="parquet", columns=columns | {"image_id": "id"})
    assert by_id.pairs["image_id"].tolist() == ["1", "1", "3"]
    assert (2, "image_id is empty") in reasons(by_id)


def test_parquet_with_paths(root: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg", "no.jpg", None], "text": ["x", "y", "z"]}), root / "p.parquet")
    found = read(root, "p.parquet", format="parquet")
    assert found.pairs["path"].tolist() == ["photos/a.jpg"]
    assert [row for row, _ in reasons(found)] == [3, 2]


def test_parquet_faults_of_the_whole_file(root: Path) -> None:
    write_shards(root)
    with pytest.raises(SourceError, match=r"data\.sources\.file: nothing matches 'no/\*\.parquet'"):
        read(root, "no/*.parquet", format="parquet")
    with pytest.raises(SourceError, match=r"columns\.bytes: shards/s-0\.parquet has no column 'byte'"):
        read(root, "shards/s-0.parquet", format="parquet", columns={"bytes": "byte", "text": "caption"})
    with pytest.raises(SourceError, match=r"columns\.image: column 'plain' .* holds bytes, not names"):
        read(root, "shards/s-0.parquet", format="parquet", columns={"image": "plain", "text": "caption"})
    (root / "torn.parquet").write_bytes((root / "shards" / "s-0.parquet").read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"torn\.parquet cannot be read as Parquet"):
        read(root, "torn.parquet", format="parquet")
    with pytest.raises(SourceError, match=r"columns\.bytes: only Parquet"):
        read(root, "a.csv", "image,text\na.jpg,dog\n", columns={"bytes": "image"})


def test_every_format_of_the_config_has_a_reader() -> None:
    assert set(READERS) == set(Source.model_fields["format"].annotation.__args__)  # type: ignore[union-attr]


def is_caption(text: str) -> bool:
    """Line ends are unified, and words for a missing text are none."""
    return text.strip() not in NO_TEXT | {""} and not set(text) & {"\r", "\0"}


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(',;"\n\t草地上的狗 ')
TEXTS = st.text(CHARACTERS, min_size=1, max_size=30).filter(is_caption)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(TEXTS, min_size=1, max_size=6),
    st.sampled_from(",\t;"),
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_csv_texts_survive(root: Path, texts: list[str], separator: str, encoding: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["image", "text"])
    writer.writerows(["a.jpg", text] for text in texts)
    found = read(root, "a.csv", file.getvalue().encode(encoding))
    assert found.pairs["text"].tolist() == [text.strip() for text in texts]
    assert found.quarantine.empty
