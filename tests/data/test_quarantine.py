"""The quarantine table counts what is bad and stops a run with one readable error."""

from __future__ import annotations

import pandas as pd
import pytest

from xmodal_kedro.data.quarantine import COLUMNS, Entry, QuarantineError, build, check_share, counts, merge


def rows(number: int, reason: str = "text is empty", kind: str = "row") -> list[Entry]:
    return [Entry(kind, "a.csv", row, "text", reason) for row in range(2, number + 2)]  # type: ignore[arg-type]


def test_table_has_its_columns_and_types() -> None:
    for table in (build([]), build([Entry("image", "s", None, "p", "r"), Entry("row", "s", 3, "k", "r")])):
        assert list(table.columns) == COLUMNS
        assert str(table["row"].dtype) == "Int64"
        assert all(str(table[name].dtype) == "str" for name in COLUMNS if name != "row")
    assert pd.isna(table["row"][0])


def test_keys_can_be_stored() -> None:
    table = build([Entry("row", "s", 1, "a\udcffb\0", "r")])
    assert table["key"][0] == "a\\udcffb\\0"
    table["key"][0].encode()


def test_merge_lists_a_fault_once() -> None:
    one = build(rows(2))
    assert len(merge(one, build([]), one)) == 2
    assert list(merge().columns) == COLUMNS


def test_counts_are_sorted() -> None:
    table = build(rows(2) + rows(3, "image is empty"))
    assert counts(table)["count"].tolist() == [3, 2]
    assert counts(table)["reason"][0] == "image is empty"


@pytest.mark.parametrize(("bad", "passes"), [(0, True), (5, True), (6, False), (100, False)])
def test_share_of_rows(bad: int, passes: bool) -> None:
    table = build(rows(bad))
    if passes:
        check_share(table, 100, 0, 0.05)
    else:
        with pytest.raises(QuarantineError, match=f"{bad} of 100 rows are bad"):
            check_share(table, 100, 0, 0.05)


def test_a_row_with_two_faults_counts_once_and_duplicates_do_not() -> None:
    table = build(rows(5) + rows(5, "group is empty") + rows(50, "twice", kind="duplicate"))
    check_share(table, 100, 10, 0.05)


def test_one_error_for_rows_and_images() -> None:
    images = [Entry("image", "", None, f"{number}.jpg", "truncated file") for number in range(20)]
    table = build(rows(30) + rows(2, "image is empty") + images)
    with pytest.raises(QuarantineError) as caught:
        check_share(table, 100, 40, 0.1)
    message = str(caught.value)
    assert "30 of 100 rows are bad (30.0%) and 20 of 40 images are bad (50.0%)" in message
    assert "data.max_bad_share = 10.0%" in message
    assert "30 x text is empty" in message
    assert "2 x image is empty" in message
    assert "20 x truncated file" in message
    assert "a.csv:2  text" in message
    assert "a.csv:4  text" in message
    assert message.count("x text is empty") == 1
    assert len(message.splitlines()) < 20


def test_nothing_read_is_nothing_bad() -> None:
    check_share(build([]), 0, 0, 0.0)
