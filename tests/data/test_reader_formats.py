"""Each format beside tables becomes the same pair table, and each fault costs its row and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readings import make_root, read, reasons
from xmodal_kedro.config.data import Source
from xmodal_kedro.data.image_bytes import image_bytes
from xmodal_kedro.data.readers import READERS, SourceError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


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
