"""Every image of every split gets its caption, once, in order, whatever the batches are."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.captioning.stores import store_of
from tests.captioning.toys import END, Logits, TableCaptioner, random_table
from tests.training.small_captioner import images as coloured_images
from tests.training.small_captioner import small_captioner
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.captioning.generate import generate
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.data.image_store import ImageStore

IDS = [f"i{number}" for number in range(12)]
TYPES = {
    **{"split": "str", "image_id": "str", "caption": "str"},
    **{"log_probability": "float64", "ended": "bool", "tokens": "int64"},
}
EVERY_METHOD = [
    DecodingConfig(method="greedy", max_steps=6),
    DecodingConfig(method="beam", beams=3, max_steps=6),
    DecodingConfig(method="nucleus", max_steps=6, seed=4),
]


class PixelCaptioner(TableCaptioner):
    """Knows an image by the value of its pixels."""

    def begin(self, images: Tensor, steps: int) -> list[tuple[int, tuple[int, ...]]]:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (2, 2, 3)
        return super().begin(images[:, 0, 0, 0].long(), steps)


def writes(texts: dict[int, str], cut: tuple[int, ...] = ()) -> Logits:
    """Logits of a captioner that writes the letters of a text about an image, and never ends those in `cut`."""

    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        text = texts.get(image, "a")
        token = "abcd".index(text[len(ids)]) + 2 if len(ids) < len(text) else (2 if image in cut else END)
        return [0.0 if index == token else -math.inf for index in range(6)]

    return logits


def table(*rows: tuple[str, str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["split", "image_id", "text"]).astype("str")


ALL = table(
    ("train", "i11", "of train"),
    ("val", "i7", "x"),
    ("dev", "i2", "x"),
    ("val", "i7", "y"),
    ("val", "i3", "x"),
    ("test", "i5", None),
    ("dev", None, "no image"),
    ("val", "i7", "z"),
    ("dev", "i0", "x"),
    ("test", "i2", None),
)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return store_of(tmp_path / "images", IDS)


def captioning(decoding: DecodingConfig = EVERY_METHOD[0], batch_size: int = 64) -> CaptioningConfig:
    return CaptioningConfig(decoding=decoding, batch_size=batch_size)


def test_every_image_of_the_splits_gets_its_caption_in_order(images: ImageStore) -> None:
    captioner = PixelCaptioner(writes({0: "ab", 2: "cab", 3: "d", 5: "", 7: "bad"}))
    found = generate(captioner, ALL, images, ["dev", "val", "test"], captioning(), "cpu", "toy")
    assert list(zip(found["split"], found["image_id"], found["caption"], found["tokens"], strict=True)) == [
        ("dev", "i2", "cab", 3),
        ("dev", "i0", "ab", 2),
        ("val", "i7", "bad", 3),
        ("val", "i3", "d", 1),
        ("test", "i5", "", 0),
        ("test", "i2", "cab", 3),
    ]
    assert found["ended"].all()
    assert found["log_probability"].tolist() == [0.0] * 6
    assert found.dtypes.astype(str).to_dict() == TYPES
    assert list(found.index) == list(range(6))


@pytest.mark.parametrize("decoding", EVERY_METHOD, ids=lambda config: config.method)
def test_captions_are_those_of_decoding_all_at_once_whatever_the_batches_are(
    images: ImageStore, decoding: DecodingConfig
) -> None:
    rows = table(*[("val" if number % 3 else "dev", image_id, "x") for number, image_id in enumerate(IDS)])
    logits = random_table(5, (0.0, 1.0, 2.0), ending=1.0)
    order = [0, 3, 6, 9, 1, 2, 4, 5, 7, 8, 10, 11]
    expected = decode(TableCaptioner(logits), torch.tensor(order), decoding)
    assert len({caption.ids for caption in expected}) > 4
    for batch_size in (1, 5, 12, 100):
        config = captioning(decoding, batch_size)
        captioner = PixelCaptioner(logits)
        found = generate(captioner, rows, images, ["dev", "val"], config, "cpu", "toy")
        assert found["image_id"].tolist() == [IDS[number] for number in order]
        assert found["caption"].tolist() == [caption.text for caption in expected]
        assert found["ended"].tolist() == [caption.ended for caption in expected]
        assert found["tokens"].tolist() == [len(caption.ids) for caption in expected]
        assert found["log_probability"].tolist() == pytest.approx(
            [caption.log_probability for caption in expected], abs=1e-5
        )
        assert captioner.sizes[0] == min(batch_size, 12)


def test_a_captioner_of_packed_pixels_writes_what_it_writes_about_each_image_alone(tmp_path: Path) -> None:
    captioner, pixels = small_captioner(), coloured_images()
    generator = torch.Generator().manual_seed(9)
    for parameter in captioner.captioner.parameters():  # so large that images matter
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    rows = table(*[("val", image_id, None) for image_id in IDS[: len(pixels)]])
    images = store_of(tmp_path / "coloured", IDS[: len(pixels)], pixels=pixels)
    found = generate(captioner, rows, images, ["val"], captioning(batch_size=3), "cpu", "small")
    alone = [decode(captioner, torch.tensor(image)[None], EVERY_METHOD[0])[0] for image in pixels]
    assert found["caption"].tolist() == [caption.text for caption in alone]
    assert found["log_probability"].tolist() == pytest.approx([one.log_probability for one in alone], abs=1e-4)
    assert found["caption"].nunique() == 4


def test_a_batch_is_read_no_more_than_one_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = store_of(tmp_path / "images", IDS)
    taken: list[int] = []

    class Counted(np.ndarray):
        def __getitem__(self, key: object) -> np.ndarray:
            taken.append(len(key))  # type: ignore[arg-type]
            return np.asarray(super().__getitem__(key))

    images.pixels = np.array(images.pixels).view(Counted)
    ahead = []

    class Watching(PixelCaptioner):
        def begin(self, pixels: Tensor, steps: int) -> list[tuple[int, tuple[int, ...]]]:
            ahead.append(len(taken))
            return super().begin(pixels, steps)

    rows = table(*[("val", image_id, "x") for image_id in IDS])
    generate(Watching(writes({})), rows, images, ["val"], captioning(batch_size=5), "cpu", "toy")
    assert taken == [5, 5, 2]
    assert all(count <= number + 2 for number, count in enumerate(ahead))


@pytest.mark.parametrize("splits", [["test"], ["dev", "val", "test"], []])
def test_no_images_give_an_empty_table_with_types(images: ImageStore, splits: list[str], tmp_path: Path) -> None:
    for rows in (ALL.iloc[:1], ALL.iloc[:0], table(("val", None, "no image"))):
        found = generate(PixelCaptioner(writes({})), rows, images, splits, captioning(), "cpu", "toy")
        assert found.empty
        assert found.dtypes.astype(str).to_dict() == TYPES
        found.to_parquet(tmp_path / "empty.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "empty.parquet"), found)


def test_images_that_are_not_packed_are_counted_and_left_out(
    images: ImageStore, caplog: pytest.LogCaptureFixture
) -> None:
    rows = table(("val", "i1", "x"), ("val", "lost", "x"), ("val", "gone", "x"), ("val", "i2", "x"))
    found = generate(PixelCaptioner(writes({2: "b"})), rows, images, ["val"], captioning(), "cpu", "toy")
    assert found["image_id"].tolist() == ["i1", "i2"]
    assert "toy: 2 images are not among the packed ones" in caplog.text


def test_captions_that_were_cut_are_a_warning(images: ImageStore, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(*[("val", image_id, "x") for image_id in IDS])
    texts = {number: "abcd"[number % 4] * (1 + number // 4) for number in range(12)}
    found = generate(PixelCaptioner(writes(texts, (3,))), rows, images, ["val"], captioning(), "cpu", "toy")
    assert found.loc[~found["ended"], "tokens"].tolist() == [6]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "toy: 8.3 % of the captions had not ended after captioning.decoding.max_steps = 6 tokens" in warned[0]


def test_nearly_equal_captions_are_a_warning(images: ImageStore, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(*[("val", image_id, "x") for image_id in IDS])
    with caplog.at_level(logging.INFO):
        generate(PixelCaptioner(writes({1: "b", 2: "c"})), rows, images, ["val"], captioning(), "cpu", "toy")
    assert "toy: 83.3 % of the images get the same caption, 'a'" in caplog.text
    assert "toy: captioned 12 images (12 of val), 1.0 tokens on average" in caplog.text
    caplog.clear()
    half = {number: "b" + "abcd"[number % 4] * (1 + number // 4) for number in range(6)}
    generate(PixelCaptioner(writes(half)), rows, images, ["val"], captioning(), "cpu", "toy")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_nothing_is_printed_without_a_terminal(images: ImageStore, capfd: pytest.CaptureFixture[str]) -> None:
    generate(PixelCaptioner(writes({})), ALL, images, ["val"], captioning(), "cpu", "toy")
    assert capfd.readouterr() == ("", "")
