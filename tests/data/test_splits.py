"""dev is cut by image: exact, repeatable, and never through an image."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_kedro.data.splits import cut_dev


def table(images: int = 100, captions: int = 3, group: str = "all", split: str = "train") -> pd.DataFrame:
    names = np.repeat([f"{group}/{number}.jpg" for number in range(images)], captions)
    frame = pd.DataFrame({"image_id": names, "path": names, "group": group, "split": split})
    return frame.assign(text=[str(number) for number in range(len(frame))])


def dev_images(pairs: pd.DataFrame) -> set[str]:
    return set(pairs.loc[pairs["split"] == "dev", "image_id"])


def test_share_is_exact_in_every_group() -> None:
    pairs = pd.concat([table(200, group="vehicle"), table(33, group="pedestrian"), table(50, split="val")])
    cut = cut_dev(pairs, 0.1, 0)
    found = cut[cut["split"] == "dev"].groupby("group")["image_id"].nunique()
    assert found.to_dict() == {"vehicle": 20, "pedestrian": 3}
    assert (cut.loc[pairs["split"] == "val", "split"] == "val").all()


def test_only_the_split_changes_and_the_input_stays() -> None:
    pairs = table()
    before = pairs.copy()
    cut = cut_dev(pairs, 0.2, 1)
    pd.testing.assert_frame_equal(pairs, before)
    pd.testing.assert_frame_equal(cut.drop(columns="split"), pairs.drop(columns="split"))


def test_no_image_is_on_both_sides() -> None:
    cut = cut_dev(table(), 0.3, 0)
    assert cut.groupby("image_id")["split"].nunique().max() == 1


def test_seed_and_image_decide_not_the_order_of_rows() -> None:
    pairs = table()
    shuffled = pairs.sample(frac=1, random_state=3)
    assert dev_images(cut_dev(pairs, 0.2, 5)) == dev_images(cut_dev(shuffled, 0.2, 5))
    assert dev_images(cut_dev(pairs, 0.2, 5)) != dev_images(cut_dev(pairs, 0.2, 6))


def test_new_images_move_few_old_ones() -> None:
    old, new = dev_images(cut_dev(table(200), 0.2, 0)), dev_images(cut_dev(table(210), 0.2, 0))
    assert len(old - new) <= 5


def test_images_that_share_an_id_or_a_path_stay_together() -> None:
    pairs = table(40, captions=1)
    pairs["image_id"] = [f"person{number // 2}" for number in range(40)]  # two photos of each
    pairs.loc[39, "path"] = pairs["path"][0]  # and the first and the last share a file
    cut = cut_dev(pairs, 0.5, 0)
    assert cut.groupby("image_id")["split"].nunique().max() == 1
    assert cut.loc[[0, 39], "split"].nunique() == 1


@pytest.mark.parametrize("unit", ["attributes", "text"])
def test_a_group_can_be_cut_by_attributes_or_text(unit: str) -> None:
    people = table(120, captions=1, group="pedestrian").assign(**{unit: [str(n // 3) for n in range(120)]})
    cars = table(60, captions=1, group="vehicle").assign(**{unit: "the same for all"})
    pairs = pd.concat([people, cars], ignore_index=True)
    cut = cut_dev(pairs.assign(attributes=pairs.get("attributes")), 0.2, 0, {"pedestrian": unit})
    assert cut[cut["group"] == "pedestrian"].groupby(unit)["split"].nunique().max() == 1
    dev = cut[cut["split"] == "dev"].groupby("group").size()
    assert dev.to_dict() == {"pedestrian": 24, "vehicle": 12}  # the vehicles are still cut by image


def test_a_unit_that_is_larger_than_the_share_does_not_empty_train() -> None:
    pairs = table(10, captions=1).assign(attributes=["a"] * 9 + ["b"])
    cut = cut_dev(pairs, 0.1, 0, {"all": "attributes"})
    assert cut.groupby("attributes")["split"].nunique().max() == 1
    assert set(cut["split"]) == {"train", "dev"}


@pytest.mark.parametrize(("images", "dev"), [(1, 0), (2, 1), (3, 1), (9, 1)])
def test_small_groups_keep_both_sides(images: int, dev: int) -> None:
    assert len(dev_images(cut_dev(table(images), 0.1, 0))) == dev


def test_a_dev_split_of_the_user_is_kept() -> None:
    pairs = pd.concat([table(50), table(5, group="mine", split="dev")], ignore_index=True)
    pd.testing.assert_frame_equal(cut_dev(pairs, 0.1, 0), pairs)


def test_nothing_to_cut() -> None:
    for pairs in (table(0), table(4, split="val")):
        pd.testing.assert_frame_equal(cut_dev(pairs, 0.1, 0), pairs)


def merged_by_hand(rows: list[tuple[str, str]]) -> list[set[int]]:
    """Rows that belong together, merged until nothing changes."""
    parts = [{number} for number in range(len(rows))]
    for first in range(len(rows)):
        for second in range(first):
            if rows[first][0] == rows[second][0] or rows[first][1] == rows[second][1]:
                left = next(part for part in parts if first in part)
                right = next(part for part in parts if second in part)
                if left is not right:
                    left |= right
                    parts.remove(right)
    return parts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvwxyz")), max_size=12),
    st.floats(0.05, 0.85),
    st.integers(0, 3),
)
def test_every_cluster_goes_as_a_whole(rows: list[tuple[str, str]], share: float, seed: int) -> None:
    pairs = pd.DataFrame(rows, columns=["image_id", "path"]).assign(group="all", split="train")
    cut = cut_dev(pairs, share, seed)["split"]
    parts = merged_by_hand(rows)
    assert all(cut.iloc[list(part)].nunique() == 1 for part in parts)
    dev = sum(cut.iloc[min(part)] == "dev" for part in parts)
    assert abs(dev - share * len(parts)) <= 0.5 or dev in (0, 1, len(parts) - 1)
