"""What stands at the end of captioning: the published file, the choice on dev, an honest sheet, a readable board."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from PIL import Image

from tests.conftest import REPOSITORY
from xmodal_kedro.captioning.compare import compare
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.config.ensemble import EvaluationConfig
from xmodal_kedro.data.image_store import ImageStore, pack
from xmodal_kedro.hooks import ProjectHook
from xmodal_kedro.reporting import captions as reporting
from xmodal_kedro.reporting.captions import best_captioner, caption_sheet, caption_submission, render_captions
from xmodal_kedro.reporting.figures import caption_bars


def table(*rows: tuple[str, str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["split", "image_id", "text"])


def generated(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["split", "image_id", "caption"])


CAPTIONS = table(
    *[("val", "v/2.jpg", "一只狗"), ("val", "v/1.jpg", "猫"), ("val", "v/2.jpg", "狗"), ("val", None, "鸟")],
    *[("test", "x/1.jpg", None), ("test", "y/1.jpg", None), ("test", "y/3.jpg", None)],
)
GENERATED = generated(
    *[("val", "v/1.jpg", "一只猫"), ("val", "v/2.jpg", "一只狗")],
    *[("test", "y/3.jpg", "树"), ("test", "x/1.jpg", "海"), ("test", "y/1.jpg", "")],
)


def test_file_names_and_captions_in_the_order_of_the_table():
    found = caption_submission(GENERATED, CAPTIONS, "val")
    assert list(found.items()) == [("2.jpg", ["一只狗"]), ("1.jpg", ["一只猫"])]
    found = caption_submission(GENERATED, CAPTIONS, None)
    assert list(found.items()) == [("x/1.jpg", ["海"]), ("y/1.jpg", [""]), ("3.jpg", ["树"])]


def test_without_test_images_val_is_handed_in():
    without = CAPTIONS[CAPTIONS["split"] != "test"]
    queries = pd.concat([without, table(("test", None, "a text alone"))])
    for captions in (without, queries):
        assert list(caption_submission(GENERATED, captions, None)) == ["2.jpg", "1.jpg"]


def test_a_split_without_captions_is_refused_and_a_missing_image_is_counted(caplog):
    with pytest.raises(ValueError, match=r"no captions of dev to hand in; splits with captions: val, test\..*split"):
        caption_submission(GENERATED, CAPTIONS, "dev")
    with pytest.raises(ValueError, match="no captions of val to hand in; splits with captions: none"):
        caption_submission(generated(), table(("dev", "1.jpg", "x")), None)
    assert list(caption_submission(GENERATED.drop(index=2), CAPTIONS, "test")) == ["x/1.jpg", "y/1.jpg"]
    assert "1 images of test have no caption and are not in the file, the first is y/3.jpg" in caplog.text


@pytest.mark.parametrize("entry", ["captions_submission", "ensemble_captions_submission"])
def test_the_catalog_writes_chinese_as_it_is(tmp_path, entry):
    config = yaml.safe_load((REPOSITORY / "conf/base/catalog_captions.yml").read_text(encoding="utf-8"))[entry]
    file = tmp_path / Path(config["filepath"]).name
    found = caption_submission(GENERATED, CAPTIONS, "val")
    catalog = DataCatalog.from_config({entry: {**config, "filepath": str(file), "versioned": False}})
    catalog.save(entry, found)
    assert "一只狗".encode() in file.read_bytes()
    assert json.loads(file.read_text(encoding="utf-8")) == found == catalog.load(entry)
    assert file.name == ("res_ensemble.json" if "ensemble" in entry else "res.json")


def board(rows: list[tuple[str, str, float]], metric: str = "cider_d_characters") -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["split", "captioner", metric])
    return found.assign(images=10, **{f"{metric}.low": found[metric] - 1, f"{metric}.high": 9 - found[metric]})


def test_the_best_on_dev_is_chosen_whatever_val_says(caplog):
    rows = [("dev", "a", 0.5), ("dev", "b", 0.7), ("dev", "c", 0.7), ("dev", "ensemble", 0.9), ("val", "a", 3.0)]
    for metric in ("cider_d_characters", "cider_d_ptb"):
        assert best_captioner(board(rows, metric), ["a", "b", "c"]) == "b"
    assert best_captioner(board(rows), ["a"]) == "a"
    assert not caplog.text
    assert best_captioner(board([("val", "a", 0.1), ("val", "b", 0.9)]), ["a", "b"]) == "a"
    assert "no captions of dev to choose a captioner by: taking a, the first" in caplog.text
    with pytest.raises(ValueError, match="no cider_d_<tokeniser> among the columns split, captioner"):
        best_captioner(board(rows, "bleu_4_characters"), ["a", "b"])


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """What the sheet was given to draw."""
    found: dict = {}

    def draws(pixels, texts, **arguments):
        found.update(shades=[int(one[0, 0, 0]) for one in pixels], texts=texts)
        return sheet(pixels, texts, **arguments)

    sheet = reporting.contact_sheet
    monkeypatch.setattr(reporting, "contact_sheet", draws)
    return found


def photos(folder: Path, count: int) -> ImageStore:
    """Grey photos, each in the shade of its number."""
    for number in range(count):
        Image.new("RGB", (16, 16), (number, number, number)).save(folder / f"{number}.png")
    items = [(f"{number}.png", f"{number}.png") for number in range(count)]
    return pack(items, folder, folder / "store", ImagesConfig(size=16, workers=1))[0]


def scored(count: int, split: str = "val", text: str = "a dog") -> pd.DataFrame:
    numbers = range(count)
    return pd.DataFrame(
        {
            **{"split": split, "image_id": [f"{number}.png" for number in numbers]},
            **{"caption": [f"{text} {number}" for number in numbers], "references": "the dog | a dog runs"},
            "cider_d_ptb": [number / 4 for number in numbers],
        }
    )


def test_the_sheet_takes_photos_evenly_and_tells_caption_score_and_reference(tmp_path, drawn):
    store = photos(tmp_path, 10)
    both = pd.concat([scored(3, "dev"), scored(10)])
    image = caption_sheet(both, store, count=4)
    assert drawn["shades"] == [0, 2, 5, 7]
    assert drawn["texts"][1] == "a dog 2\nCIDEr-D 0.50\nref: the dog"
    assert np.asarray(image).min() < 100  # there is ink
    caption_sheet(scored(3, "dev"), store)
    assert drawn["shades"] == [0, 1, 2]
    with pytest.raises(ValueError, match="of val or dev; there are: test"):
        caption_sheet(scored(3, "test"), store)


def test_a_machine_without_chinese_letters_says_so(tmp_path, monkeypatch, caplog):
    store = photos(tmp_path, 2)
    monkeypatch.setattr(reporting, "find_cjk_font", lambda: None)
    caption_sheet(scored(2), store)
    assert not caplog.text
    caption_sheet(scored(2, text="一只狗"), store)
    assert "No font of this machine has Chinese letters" in caplog.text
    caplog.clear()
    monkeypatch.setattr(reporting, "find_cjk_font", lambda: Path("simhei.ttf"))
    caption_sheet(scored(2, text="一只狗"), store)
    assert not caplog.text


def compared(names=("one", "two", "ensemble"), splits=("dev", "val"), baselines=("constant", "nearest")):
    """A real comparison, in which the later of `names` are right more often."""
    truth = ["一只黑狗在草地上跑", "两个孩子在海边玩", "一辆红色的车停在路边", "一个人站在山顶上", "白猫睡在床上"]
    images = [f"{number}.png" for number in range(5)]
    captions = table(
        *[(split, split + image, text) for split in splits for image, text in zip(images, truth, strict=True)]
    )
    made = {
        name: generated(
            *[
                (split, split + image, text if number <= place + 1 else "一个人")
                for split in splits
                for number, (image, text) in enumerate(zip(images, truth, strict=True))
            ]
        )
        for place, name in enumerate(names)
    }
    simple = {name: {split + image: "一只狗" for split in splits for image in images} for name in baselines}
    captioning = CaptioningConfig(metrics=["bleu_4", "rouge_l", "cider_d"])
    return compare(made, simple, captions, captioning, EvaluationConfig(bootstrap=50))


def test_the_board_marks_the_best_and_tells_the_paired_differences():
    found = compared()
    text = render_captions(found.leaderboard, found.comparison)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "val: captions of 5 images"
    rows = {line.split()[0]: line for line in lines[2:7]}
    assert list(rows) == ["one", "two", "ensemble", "constant", "nearest"]
    assert [line.count("*") for line in rows.values()] == [0, 0, 3, 0, 0]
    row = found.leaderboard.query("split == 'val' and captioner == 'two'").iloc[0]
    value, low, high = (row[f"cider_d_characters{end}"] for end in ("", ".low", ".high"))
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in rows["two"]
    assert f"{100 * row['bleu_4_characters']:.1f} [" in rows["two"]
    assert rows["constant"].rstrip().endswith(" 20.0")  # one caption of five images
    assert "cider_d_characters, bleu_4_characters, rouge_l_characters: against all references" in text
    assert "constant: the train sentence" in text
    paired = found.comparison.query("split == 'val' and metric == 'cider_d_characters'").set_index("captioner")
    for other in ("one", "two", "constant", "nearest"):
        cell = paired.loc[other]
        told = f"{cell.difference:+.3f} [{cell.low:+.3f}, {cell.high:+.3f}], p = {cell.p:.4f}"
        assert f"  ensemble - {other}: {told}" in lines
    assert sum(line.startswith("  ensemble - ") for line in lines) == 4


def test_the_board_reads_back_from_csv(tmp_path):
    found = compared(splits=("dev",))
    tables = []
    for name in ("leaderboard", "comparison"):
        getattr(found, name).to_csv(tmp_path / name, index=False)
        tables.append(pd.read_csv(tmp_path / name))
    assert render_captions(*tables) == render_captions(found.leaderboard, found.comparison)
    assert render_captions(*tables).startswith("dev: captions of 5 images")


def test_a_captioner_alone_has_nobody_to_be_compared_with(caplog):
    caplog.set_level(logging.WARNING)
    found = compared(names=("one",), baselines=())
    text = render_captions(found.leaderboard, found.comparison)
    assert "one" in text
    assert "against the others" not in text
    assert not any("*" in line for line in text.splitlines()[:3])
    assert "constant" not in text


def test_a_run_that_compared_captions_ends_with_the_board(tmp_path, capsys):
    found = compared()
    names = ["caption_leaderboard", "caption_comparison"]
    catalog = DataCatalog({name: MemoryDataset(getattr(found, name.removeprefix("caption_"))) for name in names})
    hook = ProjectHook()
    hook.project = tmp_path
    hook.after_pipeline_run({}, Pipeline([Node(compared, None, names, name="compare")]), catalog)
    told = capsys.readouterr().out
    assert render_captions(found.leaderboard, found.comparison) in told
    assert "Written by this run:\n  caption_comparison" in told
    hook.after_pipeline_run({}, Pipeline([Node(compared, None, ["a", "b"], name="compare")]), catalog)
    assert "captions of" not in capsys.readouterr().out


def test_the_figure_has_bars_with_intervals_of_each_split():
    found = compared()
    metric = "cider_d_characters"
    bars = {bar.name: bar for bar in caption_bars(found.leaderboard, metric).data}
    assert list(bars) == ["dev", "val"]
    rows = found.leaderboard[found.leaderboard["split"] == "val"]
    assert bars["val"].x == ("one", "two", "ensemble", "constant", "nearest")
    assert bars["val"].y == tuple(rows[metric])
    assert np.add(bars["val"].y, bars["val"].error_y.array) == pytest.approx(rows[f"{metric}.high"].to_numpy())
    assert np.subtract(bars["val"].y, bars["val"].error_y.arrayminus) == pytest.approx(rows[f"{metric}.low"].to_numpy())


def test_metrics_that_were_not_asked_for_are_left_out():
    found = compared()
    columns = [name for name in found.leaderboard if not name.startswith("bleu_4")]
    text = render_captions(found.leaderboard[columns], found.comparison)
    assert "bleu_4" not in text
    assert "rouge_l" in text
