"""Sources together: groups, leaks, contradicting ids, duplicates; and the real photo sets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import pair_checks
from xmodal_kedro.config.data import Columns, DataConfig, GroupRule, Source
from xmodal_kedro.data.image_bytes import iterate_image_bytes
from xmodal_kedro.data.quarantine import check_share
from xmodal_kedro.data.readers import Read, SourceError, read_pairs
from xmodal_kedro.data.readers.assemble import pair_table
from xmodal_kedro.data.readers.sources import CHECKS
from xmodal_kedro.data.splits import cut_dev

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "photos").mkdir(parents=True)
    for name in "abcdefgh":
        (tmp_path / "raw" / "photos" / f"{name}.jpg").touch()
    return tmp_path


def read(
    project: Path,
    sources: dict[str, Sequence[str]],
    groups: Sequence[GroupRule] = (),
    root: str = "raw",
    **columns: Any,
) -> Read:
    """Sources by `<split>...csv`, each a header and lines; every column that is named is mapped."""
    found = []
    for file, lines in sources.items():
        (project / "raw" / file).write_text("\n".join(lines) + "\n")
        split = file.split(".")[0].rstrip("0123456789")
        found.append(Source(split=split, format="table", file=file, images="photos", columns=Columns(**columns)))  # type: ignore[arg-type]
    return read_pairs(DataConfig(root=root, sources=found, groups=list(groups)), project)


def test_the_root_may_be_absolute(project: Path) -> None:
    lines = ["image,text", "a.jpg,dog"]
    for root in ("raw", str(project / "raw")):
        assert read(project, {"train.csv": lines}, root=root).pairs["path"].tolist() == ["photos/a.jpg"]
    with pytest.raises(SourceError, match=r"data\.root: .*nowhere is not a folder"):
        read(project, {"train.csv": lines}, root="nowhere")


def test_errors_name_the_source(project: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.sources\[1\]\.columns\.text: val\.csv"):
        read(project, {"train.csv": ["image,text", "a.jpg,dog"], "val.csv": ["image,words", "b.jpg,cat"]})


def test_duplicates_are_listed_and_not_bad(project: Path) -> None:
    lines = ["image,text", "a.jpg,dog", "a.jpg,dog", "a.jpg,cat", "b.jpg,dog", "a.jpg, dog "]
    found = read(project, {"train.csv": lines})
    assert found.pairs["row"].tolist() == [2, 4, 5]
    assert found.quarantine["kind"].tolist() == ["duplicate"] * 2
    assert found.quarantine["row"].tolist() == [3, 6]
    assert found.rows == 5
    check_share(found.quarantine, found.rows, 0, 0.0)


def test_repeated_queries_and_galleries(project: Path) -> None:
    found = read(project, {"test.csv": ["image,text", ",dog", ",dog", "a.jpg,", "a.jpg,"]})
    assert found.pairs["row"].tolist() == [2, 3, 4]


def test_leaks_leave_the_side_that_is_learned_from(project: Path) -> None:
    sources = {
        "train.csv": ["image,text", "a.jpg,1", "b.jpg,2", "c.jpg,3", "d.jpg,4"],
        "dev.csv": ["image,text", "b.jpg,5", "c.jpg,6"],
        "val.csv": ["image,text", "c.jpg,7", "e.jpg,8"],
        "test.csv": ["image,text", "e.jpg,", "d.jpg,"],
    }
    found = read(project, sources)
    kept = found.pairs.groupby("split")["path"].agg(list).to_dict()
    assert kept == {
        "train": ["photos/a.jpg"],
        "dev": ["photos/b.jpg"],
        "val": ["photos/c.jpg", "photos/e.jpg"],
        "test": ["photos/e.jpg", "photos/d.jpg"],
    }
    assert set(found.quarantine["kind"]) == {"row"}
    assert found.quarantine["key"].tolist() == ["photos/b.jpg", "photos/c.jpg", "photos/d.jpg", "photos/c.jpg"]


def test_ids_that_contradict_each_other(project: Path) -> None:
    lines = ["image,text,id,tid", "a.jpg,dog,1,x", "b.jpg,cat,1,y", "a.jpg,cow,2,z", "c.jpg,emu,3,x", "d.jpg,dog,4,x"]
    found = read(project, {"train.csv": lines}, image_id="id", text_id="tid")
    assert found.pairs["row"].tolist() == [2, 6]
    said = dict(zip(found.quarantine["row"], found.quarantine["reason"], strict=True))
    assert "another path" in said[3]
    assert "image_id must name images" in said[4]
    assert "another text" in said[5]


def test_a_row_of_several_files_has_its_own_number(project: Path) -> None:
    found = read(
        project, {"train1.csv": ["image,text", "a.jpg,"], "train2.csv": ["image,text", "b.jpg,dog", "x.jpg,y"]}
    )
    assert found.quarantine[["source", "row"]].to_numpy().tolist() == [["train1.csv", 2], ["train2.csv", 3]]
    assert (len(found.pairs), found.rows) == (1, 3)


COLUMNS = {"image_id": "ab", "path": "pq", "text_id": "tu", "text": "xy", "split": ["train", "dev", "val"]}
ROWS = st.fixed_dictionaries({name: st.sampled_from([*values]) for name, values in COLUMNS.items()})


@settings(max_examples=80, deadline=None)
@given(st.lists(ROWS, max_size=12), st.randoms())
def test_checks_agree_with_loops(rows: list[dict[str, str | None]], chance: random.Random) -> None:
    for row in rows:
        for side in (("image_id", "path"), ("text_id", "text")):
            if chance.random() < 0.2:
                row.update(dict.fromkeys(side))
    pairs = pair_table(
        (row["image_id"], row["text_id"], row["path"], row["text"], "all", None, row["split"], 1, "s") for row in rows
    )
    names = ("leak", "path", "id", "text", "duplicate")
    found = {}
    for name, check in zip(names, CHECKS, strict=True):
        out = check.found(pairs)
        found |= dict.fromkeys(pairs.index[out], name)
        pairs = pairs[~out]
    assert found == pair_checks.faults(rows)


RULES = [
    GroupRule(name="vehicle", image="^v", attributes=r"Audi|Bus"),
    GroupRule(name="pedestrian", attributes="^[01],", text="He|She"),
    GroupRule(name="walker", text="(He|She) walks"),
]


def group_of(project: Path, line: str, rules: Sequence[GroupRule], split: str = "test") -> list[str]:
    (project / "raw" / "photos" / "v1.jpg").touch()
    found = read(project, {f"{split}.csv": ["image;text;bits", line]}, rules, attributes="bits")
    return [*found.pairs["group"], *found.quarantine["reason"]]


@pytest.mark.parametrize(
    ("line", "group"),
    [
        ("v1.jpg;x;Audi", "vehicle"),
        ("v1.jpg;x;", "vehicle"),  # no attributes: that pattern is passed over
        ("a.jpg;He walks;0,1", "pedestrian"),
        ("a.jpg;He walks;", "pedestrian"),
        ("v1.jpg;She walks;Truck", "walker"),
        (";She walks;", "pedestrian"),
        (";x;Bus", "vehicle"),
    ],
)
def test_the_first_rule_that_matches(project: Path, line: str, group: str) -> None:
    assert group_of(project, line, RULES) == [group]


def test_no_rule_matches(project: Path) -> None:
    (reason,) = group_of(project, "a.jpg;x;Truck", RULES)
    assert "data.groups" in reason
    assert "data.groups" in group_of(project, ";x;", [GroupRule(name="v", image="v")])[0]
    assert group_of(project, "a.jpg;x;", [*RULES, GroupRule(name="rest")]) == ["rest"]
    assert group_of(project, "a.jpg;x;", []) == ["all"]


def test_a_broken_pattern_names_its_key(project: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.groups\[0\]\.text: '\(' is no pattern"):
        group_of(project, "a.jpg;x;", [GroupRule(name="v", text="(")])


def test_image_patterns_see_the_name_as_it_was_found(project: Path) -> None:
    rules = [GroupRule(name="found", image=r"^a\.jpg$")]
    assert group_of(project, "a;x;", rules) == ["found"]
    assert group_of(project, "./a.jpg;x;", rules) == ["found"]


def test_source_and_column_come_before_the_rules(project: Path) -> None:
    lines = ["image,text,kind", "a.jpg,He,bus"]
    found = read(project, {"train.csv": lines}, RULES, group="kind")
    assert found.pairs["group"].tolist() == ["bus"]
    source = Source(split="train", format="table", file="train.csv", images="photos", group="mine")
    fixed = read_pairs(DataConfig(root="raw", sources=[source], groups=RULES), project)
    assert fixed.pairs["group"].tolist() == ["mine"]


def test_blind_test_of_a_folder_and_a_file_of_queries(project: Path) -> None:
    (project / "raw" / "test_text.txt").write_text("A white Audi.\nHe walks.\nA white Audi.\n")
    sources = [
        Source(split="test", format="folder", images="photos"),
        Source(split="test", format="queries", file="test_text.txt"),
    ]
    found = read_pairs(DataConfig(root="raw", sources=sources), project).pairs
    assert found["path"].notna().tolist() == [True] * 8 + [False] * 3
    assert found["text"].dropna().tolist() == ["A white Audi.", "He walks.", "A white Audi."]
    with pytest.raises(SourceError, match=r"data\.sources\[0\]: split 'train' needs pairs"):
        read_pairs(DataConfig(root="raw", sources=[sources[1].model_copy(update={"split": "train"})]), project)


def shards(folder: str, files: dict[str, str], columns: Columns) -> tuple[Path, Read]:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the real photos are not here: {SHARED / folder}")
    sources = [
        Source(split=split, format="parquet", file=file, columns=columns)  # type: ignore[arg-type]
        for split, file in files.items()
    ]
    return SHARED / folder, read_pairs(DataConfig(root=str(SHARED / folder), sources=sources), Path())


def test_real_traffic_photos() -> None:
    columns = Columns(attributes="attributes", group="kind", bytes="bytes")
    root, found = shards("traffic", {"train": "train.parquet", "val": "val.parquet"}, columns)
    assert found.pairs["split"].value_counts().to_dict() == {"train": 11_272, "val": 1_464}
    assert found.quarantine.empty
    assert set(found.pairs["group"]) == {"vehicle", "pedestrian"}
    cut = cut_dev(found.pairs, 0.1, 0)
    train = found.pairs[found.pairs["split"] == "train"].groupby("group")["image_id"].nunique()
    dev = cut[cut["split"] == "dev"].groupby("group")["image_id"].nunique()
    assert dev.to_dict() == (train * 0.1).round().astype(int).to_dict()
    some = found.pairs["path"].sample(40, random_state=0)
    assert all(isinstance(value, bytes) and value[:2] == b"\xff\xd8" for _, value in iterate_image_bytes(root, some))


def test_real_flickr_photos() -> None:
    columns = Columns(text=["captions_en", "captions_zh"], bytes="bytes")
    _, found = shards("flickr8k", {"train": "train-*.parquet", "val": "val.parquet"}, columns)
    assert found.rows == 7_000
    assert found.pairs.groupby("split")["image_id"].nunique().to_dict() == {"train": 6_000, "val": 1_000}
    assert len(found.pairs) + len(found.quarantine) == 70_000
    assert set(found.quarantine["kind"]) == {"duplicate"}
    assert not found.pairs.duplicated(["split", "text_id"]).any()
    assert pd.notna(found.pairs[["image_id", "path", "text"]]).all(axis=None)
