"""Captions are held to all references of their images; what cannot be judged is counted, never scored."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest

from tests.captioning.judging import CAPTIONING, EVALUATION, caption_table, generated, random_data, written
from tests.conftest import SHARED
from tests.reference.captions import bleu, rouge_l
from xmodal_kedro.captioning import judge as judge_module
from xmodal_kedro.captioning.judge import computable, judge
from xmodal_kedro.captioning.metrics import MetricUnavailableError, Scores, evaluate
from xmodal_kedro.captioning.references import references_of
from xmodal_kedro.config.captioning import CaptioningConfig
from xmodal_kedro.config.ensemble import EvaluationConfig

FIXTURE = SHARED / "metric_fixtures" / "published_scores.json"
NAMES = ["bleu_1_characters", "bleu_4_characters", "rouge_l_characters", "cider_d_characters"]
TABLE = caption_table(
    *[("dev", "d1", "abcd"), ("dev", "d1", "abce"), ("dev", "d2", "xyz")],
    *[("val", "v1", "hello"), ("val", "v1", "hallo"), ("val", "v2", "world"), ("val", "v2", "hello world")],
    *[("train", "t", "of train"), ("test", "x", None)],
)
CAPTIONS = generated(
    *[("dev", "d2", "xyyyyyyyz"), ("dev", "d1", "abcd")],
    *[("val", "v1", "Hello!"), ("val", "v2", "hello"), ("test", "x", "of test")],
    cut=("v2",),
)


@pytest.fixture(autouse=True)
def _said_nothing() -> None:
    judge_module._say_once.cache_clear()


def test_scores_are_those_of_all_references_in_the_order_of_the_captions() -> None:
    judged = judge(CAPTIONS, TABLE, CAPTIONING)
    assert list(judged.scores) == ["dev", "val"]
    by_hand = {
        "dev": ({"d2": "xyyyyyyyz", "d1": "abcd"}, {"d2": ["xyz"], "d1": ["abcd", "abce"]}),
        "val": ({"v1": "Hello!", "v2": "hello"}, {"v1": ["hello", "hallo"], "v2": ["world", "hello world"]}),
    }
    for split, (captions, references) in by_hand.items():
        expected = evaluate(captions, references, NAMES)
        assert list(judged.scores[split]) == NAMES
        for name in NAMES:
            assert judged.scores[split][name].value == expected[name].value
            assert judged.scores[split][name].each.tolist() == expected[name].each.tolist()
    of_dev = [list("xyyyyyyyz"), list("abcd")], [[list("xyz")], [list("abcd"), list("abce")]]
    assert judged.scores["dev"]["bleu_1_characters"].value == pytest.approx(bleu(*of_dev, 1))
    assert judged.scores["dev"]["rouge_l_characters"].each.tolist() == pytest.approx(
        [rouge_l(*pair) for pair in zip(*of_dev, strict=True)]
    )


def test_the_metric_table_by_hand() -> None:
    judged = judge(CAPTIONS, TABLE, CAPTIONING)
    table = judged.metrics(EVALUATION)
    assert list(table.columns) == ["split", "metric", "value", "low", "high", "images"]
    assert table["split"].tolist() == ["dev"] * 8 + ["val"] * 8
    assert table["metric"].tolist() == [*NAMES, "distinct_captions", "repetition_characters", "ended", "tokens"] * 2
    assert table["images"].tolist() == [2] * 16
    value = table.set_index(["split", "metric"])["value"]
    for split in ("dev", "val"):
        assert [value[split, name] for name in NAMES] == [judged.scores[split][name].value for name in NAMES]
    assert value["dev", "distinct_captions"] == 1.0
    # xyyy yyyy yyyy yyyy yyyy yyyz: of 6 runs of 4, 3 were there before; the other caption repeats nothing
    assert value["dev", "repetition_characters"] == pytest.approx((3 / 6 + 0) / 2)
    assert value["dev", "ended"] == 1.0
    assert value["val", "ended"] == 0.5
    assert value["dev", "tokens"] == 6.5
    assert table[["low", "high"]].isna().all(axis=1).tolist() == (table["metric"] == "distinct_captions").tolist()


def test_intervals_are_bootstraps_over_images_as_the_evaluation_asks_for() -> None:
    captions, texts = random_data(0)
    judged = judge(written(texts), captions, CAPTIONING)
    table = judged.metrics(EVALUATION).set_index(["split", "metric"])
    for split, scores in judged.scores.items():
        for name, found in scores.items():
            low, high = table.loc[(split, name), ["low", "high"]]
            assert (low, high) == found.interval(resamples=200, seed=3)
            assert low < found.value < high
        low, high = table.loc[(split, "tokens"), ["low", "high"]]
        assert low < table.loc[(split, "tokens"), "value"] < high
    without = judged.metrics(EvaluationConfig(bootstrap=0))
    assert without[["low", "high"]].isna().all(axis=None)
    assert without["value"].tolist() == table["value"].tolist()


def test_the_table_has_a_row_per_judged_image() -> None:
    judged = judge(CAPTIONS, TABLE, CAPTIONING)
    table = judged.table()
    assert list(table.columns) == ["split", "image_id", "caption", "references", *NAMES]
    told = table[["split", "image_id", "caption", "references"]]
    assert told.to_numpy().tolist() == [
        ["dev", "d2", "xyyyyyyyz", "xyz"],
        ["dev", "d1", "abcd", "abcd | abce"],
        ["val", "v1", "Hello!", "hello | hallo"],
        ["val", "v2", "hello", "world | hello world"],
    ]
    for name in NAMES:
        each = np.concatenate([judged.scores[split][name].each for split in ("dev", "val")])
        assert table[name].tolist() == each.tolist()


def test_images_that_cannot_be_judged_are_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.concat([TABLE, caption_table(("val", "v3", "not captioned"), ("val", "v4", None), ("val", "v5", "..."))])
    captions = pd.concat([CAPTIONS, generated(*[("val", f"v{number}", "a") for number in (4, 5, 6)])])
    judged = judge(captions, table, CAPTIONING)
    assert judged.captions["val"]["image_id"].tolist() == ["v1", "v2"]
    plain = judge(CAPTIONS, TABLE, CAPTIONING)
    pd.testing.assert_frame_equal(judged.metrics(EVALUATION), plain.metrics(EVALUATION))
    warned = [record.getMessage() for record in caplog.records]
    assert warned == ["Not judged of val: 3 images without a reference, 1 images without a caption"]


def test_a_split_with_one_image_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    judged = judge(CAPTIONS[CAPTIONS["image_id"] != "d1"], TABLE[TABLE["image_id"] != "d1"], CAPTIONING)
    assert list(judged.scores) == list(judged.captions) == ["val"]
    assert "dev is not judged: one image" in caplog.text
    assert set(judged.metrics(EVALUATION)["split"]) == set(judged.table()["split"]) == {"val"}


def test_nothing_to_judge_is_an_error() -> None:
    for captions, table in ((CAPTIONS.iloc[:0], TABLE), (CAPTIONS, TABLE[TABLE["split"] == "train"])):
        with pytest.raises(ValueError, match="neither dev nor val has two images with a caption and a reference"):
            judge(captions, table, CAPTIONING)


def test_metrics_that_cannot_be_computed_are_named_once_and_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    config = CaptioningConfig(metrics=["meteor", "cider_d", "rouge_l", "cider_d"])
    for _ in range(3):
        judged = judge(CAPTIONS, TABLE, config)
        assert list(judged.scores["val"]) == ["cider_d_characters", "rouge_l_characters"]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "left out: meteor_characters (METEOR needs Java, and there is no `java` on the PATH)" in warned[0]


def test_without_cider_d_there_is_no_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "unavailable", lambda name: "jieba is not there." if "words" in name else None)
    assert computable(CaptioningConfig(metrics=["cider_d"])) == ["cider_d_characters"]
    with pytest.raises(MetricUnavailableError, match=r"captioning.tokeniser is 'words': jieba is not there\."):
        computable(CaptioningConfig(metrics=["cider_d"], tokeniser="words"))


def test_metrics_by_embeddings_come_after_the_others() -> None:
    asked = []

    def clip(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, Scores]:
        asked.append((captions, references))
        return {"clipscore": Scores.mean_of([0.25, 0.75])}

    judged = judge(CAPTIONS, TABLE, CAPTIONING, clip)
    assert list(judged.scores["val"]) == [*NAMES, "clipscore"]
    assert asked[1] == ({"v1": "Hello!", "v2": "hello"}, references_of(TABLE, "val"))
    metrics = judged.metrics(EVALUATION).set_index(["split", "metric"])["value"]
    assert metrics["val", "clipscore"] == 0.5
    assert judged.table()["clipscore"].tolist() == [0.25, 0.75] * 2


def test_captions_that_need_no_model_have_no_tokens_of_their_own() -> None:
    judged = judge(CAPTIONS[["split", "image_id", "caption"]], TABLE, CAPTIONING)
    metrics = judged.metrics(EVALUATION)
    assert metrics["metric"].tolist() == [*NAMES, "distinct_captions", "repetition_characters"] * 2
    assert not metrics["value"].map(math.isnan).any()


@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"{FIXTURE} is not here")
@pytest.mark.parametrize("case", ["clipscore_good", "clipscore_bad"])
def test_published_scores_come_out(case: str) -> None:
    facts = json.loads(FIXTURE.read_text())[case]
    rows = [("val", image, text) for image, texts in facts["references"].items() for text in texts]
    captions = generated(*[("val", image, text) for image, text in facts["hypotheses"].items()])
    config = CaptioningConfig(tokeniser="ptb", metrics=["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"])
    value = judge(captions, caption_table(*rows), config).metrics(EVALUATION).set_index("metric")["value"]
    published = facts["published"]
    for order in range(1, 5):
        assert value[f"bleu_{order}_ptb"] == pytest.approx(published[f"Bleu_{order}"], abs=5.1e-5)
    assert value["rouge_l_ptb"] == pytest.approx(published["ROUGE_L"], abs=5.1e-5)
    assert value["cider_d_ptb"] == pytest.approx(published["CIDEr"], abs=5.1e-5)
