"""Tables become pairs, whatever their separators and encodings, and each fault costs its row and says why."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.readings import make_root, read, reasons
from xmodal_kedro.data.readers import PAIR_COLUMNS, SourceError
from xmodal_kedro.data.readers.rows import NO_TEXT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


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
