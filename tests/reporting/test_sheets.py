"""A sheet shows every image whole and every caption inside its cell, and is drawn whatever the captions hold."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from xmodal_kedro.reporting import sheets
from xmodal_kedro.reporting.sheets import contact_sheet, find_cjk_font

RED, BLUE = np.full((20, 40, 3), (255, 0, 0), np.uint8), np.full((60, 30, 3), (0, 0, 255), np.uint8)
WHITE = (255, 255, 255)


@pytest.fixture(autouse=True)
def _forget_the_font() -> Iterator[None]:
    sheets._font.cache_clear()
    yield
    sheets._font.cache_clear()


def test_images_lie_in_rows_with_their_own_aspect_ratio():
    sheet = np.asarray(contact_sheet([RED, BLUE] * 4, ["x"] * 8, columns=3, cell=80))
    red, blue = (sheet == (255, 0, 0)).all(2), (sheet == (0, 0, 255)).all(2)
    assert red.sum() == 4 * 80 * 40
    assert blue.sum() == 4 * 40 * 80
    columns = np.flatnonzero((red | blue).any(0))
    assert np.count_nonzero(np.diff(columns) > 1) == 2
    rows = np.flatnonzero((red | blue).any(1))
    assert np.count_nonzero(np.diff(rows) > 1) == 2


def dark_area(caption: str, cell: int = 100, lines: int = 3) -> np.ndarray:
    """Where a sheet of one white image has ink."""
    white = np.full((10, 10, 3), 255, np.uint8)
    sheet = np.asarray(contact_sheet([white], [caption], cell=cell, lines=lines)).astype(int)
    return sheet.sum(2) < 500


@pytest.mark.parametrize(
    "caption",
    ["a red car", "word " * 200, "W" * 500, "一辆红色的小轿车停在路边" * 30, "two\nlines\tand\ttabs", "", "…"],
)
def test_captions_stay_inside_their_cell(caption):
    ink = dark_area(caption)
    assert not ink[:, -6:].any()
    assert not ink[-4:].any()
    assert not ink[:100].any()
    assert ink.any() == bool(caption)


def test_a_long_caption_is_cut_with_an_ellipsis_and_a_short_one_is_not():
    font = sheets._font(12)
    long = sheets._wrapped("A pedestrian who walks on foot and looks into the camera " * 5, 100, 3, font)
    assert len(long) == 3
    assert long[-1].endswith("…")
    assert " ".join(long)[:20] == "A pedestrian who wal"
    assert all(font.getlength(line) <= 100 for line in long)
    assert sheets._wrapped("short", 100, 3, font) == ["short"]
    assert sheets._wrapped("W" * 40, 100, 2, font)[1].endswith("…")
    words = ["white", "Audi", "sedan", "on", "a", "wet", "road"]
    assert " ".join(sheets._wrapped(" ".join(words), 80, 9, font)).split() == words


def test_a_line_break_begins_a_new_line_as_long_as_there_are_any():
    def lines_of(caption: str, lines: int) -> int:
        return int((np.diff(dark_area(caption, lines=lines).any(1).astype(int)) == 1).sum())

    assert lines_of("HH", 3) == 1
    assert lines_of("H\nH", 3) == 2
    assert lines_of("H\n\nH\nH\nH", 3) == 3


def test_a_machine_without_chinese_fonts_draws_all_the_same(monkeypatch):
    monkeypatch.setattr(sheets, "FONT_FOLDERS", ())
    assert find_cjk_font() is None
    assert dark_area("红色 car").any()


def test_the_bitmap_font_of_a_small_pillow_draws_all_the_same(monkeypatch):
    monkeypatch.setattr(sheets, "FONT_FOLDERS", ())
    monkeypatch.setattr(ImageFont, "load_default", lambda height: ImageFont.load_default_imagefont())
    assert dark_area("红色 car…" * 20).any()


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pretends to be the fonts of a machine."""
    folder = tmp_path / "fonts"
    (folder / "opentype" / "noto").mkdir(parents=True)
    monkeypatch.setattr(sheets, "FONT_FOLDERS", (str(folder), str(tmp_path / "absent")))
    return folder


def test_the_best_chinese_font_is_found(fonts):
    for name in ("DejaVuSans.ttf", "simhei.ttf", "NotoSansCJK-Bold.ttc", "readme.txt"):
        (fonts / name).touch()
    (fonts / "opentype/noto/NotoSansCJK-Regular.ttc").touch()
    assert find_cjk_font() == fonts / "opentype/noto/NotoSansCJK-Regular.ttc"
    (fonts / "opentype/noto/NotoSansCJK-Regular.ttc").unlink()
    assert find_cjk_font() == fonts / "NotoSansCJK-Bold.ttc"
    (fonts / "NotoSansCJK-Bold.ttc").unlink()
    assert find_cjk_font() == fonts / "simhei.ttf"
    (fonts / "simhei.ttf").unlink()
    assert find_cjk_font() is None


def test_a_font_that_is_found_is_used_and_a_broken_one_is_not(fonts):
    (fonts / "simhei.ttf").write_bytes(b"no font")
    assert dark_area("红色").any()
    sheets._font.cache_clear()
    default = ImageFont.load_default(12)
    assert isinstance(default, ImageFont.FreeTypeFont)
    (fonts / "simhei.ttf").write_bytes(default.font_bytes)
    used = sheets._font(12)
    assert isinstance(used, ImageFont.FreeTypeFont)
    assert used.path == str(fonts / "simhei.ttf")


def test_no_images_are_an_empty_sheet():
    sheet = contact_sheet([], [])
    assert min(sheet.size) > 100
    assert sheet.getcolors() == [(sheet.width * sheet.height, WHITE)]


def test_greyscale_and_odd_shapes_are_shown():
    contact_sheet([np.zeros((1, 300), np.uint8), np.zeros((300, 1, 3), np.uint8)[::-1]], ["line", "line"], cell=20)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        contact_sheet([RED], ["a", "b"])
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([RED], ["a"], columns=0)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=80), st.integers(1, 60), st.integers(1, 4))
def test_no_caption_is_an_error(caption, cell, lines):
    contact_sheet([RED], [caption], cell=cell, lines=lines)
