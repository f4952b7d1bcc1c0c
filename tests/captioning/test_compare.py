"""Everybody is judged once, on the same images, and the best at hand is held against the others."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from tests.captioning.judging import CAPTIONING, EVALUATION, caption_table, generated, random_data, written
from tests.reference.bootstrap import randomisation_p
from xmodal_kedro.captioning import compare as compare_module
from xmodal_kedro.captioning.compare import Compared, compare
from xmodal_kedro.captioning.judge import judge
from xmodal_kedro.captioning.metrics import Scores, evaluate
from xmodal_kedro.captioning.references import references_of

CIDER_D = "cider_d_characters"
CAPTIONS, GOOD = random_data(0)
REFERENCES = {split: references_of(CAPTIONS, split) for split in ("dev", "val")}
WEAK = {image_id: text[:3] for image_id, text in GOOD.items()}
PERFECT = {image_id: REFERENCES[image_id[:3]][image_id][0] for image_id in GOOD}
CONSTANT = dict.fromkeys(GOOD, "abcde")
NEAREST = dict(zip(GOOD, list(GOOD.values())[::-1], strict=True))
BASELINES = {"constant": CONSTANT, "nearest": NEAREST}


def cider_d(captions: dict[str, str], split: str) -> Scores:
    of_split = {image_id: text for image_id, text in captions.items() if image_id in REFERENCES[split]}
    return evaluate(of_split, REFERENCES[split], [CIDER_D])[CIDER_D]


def run(by_name: dict[str, dict[str, str]], baselines: dict[str, dict[str, str]] = BASELINES) -> Compared:
    tables = {name: written(captions) for name, captions in by_name.items()}
    return compare(tables, baselines, CAPTIONS, CAPTIONING, EVALUATION)


def test_the_leaderboard_has_a_row_for_everybody_in_order() -> None:
    compared = run({"ensemble": GOOD, "weak": WEAK, "perfect": PERFECT})
    board = compared.leaderboard
    everybody = ["weak", "perfect", "ensemble", "constant", "nearest"]
    assert board["captioner"].tolist() == everybody * 2
    assert board["split"].tolist() == ["dev"] * 5 + ["val"] * 5
    assert board["images"].tolist() == [10] * 5 + [20] * 5
    names = [*(f"{name}_characters" for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d")), "distinct_captions"]
    names += ["repetition_characters", "ended", "tokens"]
    assert list(board.columns) == [
        *("split", "captioner", "images"),
        *(column for name in names for column in (name, f"{name}.low", f"{name}.high")),
    ]
    said = {"weak": WEAK, "perfect": PERFECT, "ensemble": GOOD, **BASELINES}
    for row in board.to_dict("records"):
        expected = cider_d(said[row["captioner"]], row["split"])
        assert row[CIDER_D] == expected.value
        assert (row[f"{CIDER_D}.low"], row[f"{CIDER_D}.high"]) == expected.interval(resamples=200, seed=3)
    by_name = board.set_index(["split", "captioner"])
    assert by_name["distinct_captions"]["val", "constant"] == 1 / 20
    assert by_name["tokens"]["val", "weak"] == 3.0
    assert by_name[["tokens", "ended"]].isna().all(axis=1).tolist() == [False, False, False, True, True] * 2
    assert by_name[CIDER_D]["val", "perfect"] > by_name[CIDER_D]["val", "ensemble"] > 0


def test_the_ensemble_is_the_best_at_hand_whatever_it_scores() -> None:
    compared = run({"perfect": PERFECT, "ensemble": GOOD})
    judged = judge(written(GOOD), CAPTIONS, CAPTIONING)
    pd.testing.assert_frame_equal(compared.metrics, judged.metrics(EVALUATION))
    pd.testing.assert_frame_equal(compared.table, judged.table())
    assert list(dict.fromkeys(compared.comparison["captioner"])) == ["perfect", "constant", "nearest"]


def test_of_captioners_alone_the_best_on_dev_is_the_best_at_hand() -> None:
    on_dev = {image_id: (PERFECT if image_id in REFERENCES["dev"] else WEAK)[image_id] for image_id in GOOD}
    on_val = {image_id: (PERFECT if image_id in REFERENCES["val"] else WEAK)[image_id] for image_id in GOOD}
    compared = run({"on_val": on_val, "on_dev": on_dev, "weak": WEAK})
    assert compared.table["caption"].tolist() == list(written(on_dev).sort_values("split", kind="stable")["caption"])
    assert list(dict.fromkeys(compared.comparison["captioner"])) == ["on_val", "weak", "constant", "nearest"]
    value = compared.metrics.set_index(["split", "metric"])["value"]
    assert value["val", CIDER_D] == cider_d(WEAK, "val").value


def test_without_dev_nothing_is_chosen_and_the_first_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    val = {image_id: GOOD[image_id] for image_id in REFERENCES["val"]}
    tables = {"weak": written({key: WEAK[key] for key in val}), "good": written(val)}
    compared = compare(tables, BASELINES, CAPTIONS[CAPTIONS["split"] == "val"], CAPTIONING, EVALUATION)
    assert compared.table["caption"].tolist() == [WEAK[key] for key in val]
    assert set(compared.leaderboard["split"]) == {"val"}
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["There is no dev split to choose a captioner by: 'weak', the first, is reported"]


def test_differences_are_paired_and_cider_d_comes_first() -> None:
    comparison = run({"weak": WEAK, "ensemble": GOOD}).comparison
    assert list(comparison.columns) == ["split", "captioner", "metric", "difference", "low", "high", "p"]
    means = [CIDER_D, "rouge_l_characters"]  # BLEU is no mean over images
    assert comparison["metric"].tolist() == means * 6
    assert comparison["captioner"].tolist() == (["weak"] * 2 + ["constant"] * 2 + ["nearest"] * 2) * 2
    assert comparison["split"].tolist() == ["dev"] * 6 + ["val"] * 6
    said = {"weak": WEAK, **BASELINES}
    for row in comparison[comparison["metric"] == CIDER_D].to_dict("records"):
        ours, theirs = cider_d(GOOD, row["split"]), cider_d(said[row["captioner"]], row["split"])
        change = ours.each - theirs.each
        assert row["difference"] == pytest.approx(ours.value - theirs.value)
        assert row["low"] < row["difference"] < row["high"]
        spread = 1.96 * change.std() / np.sqrt(len(change))  # what a normal distribution would give
        assert row["high"] - row["low"] == pytest.approx(2 * spread, rel=0.15)
        if row["split"] == "dev":
            assert row["p"] == pytest.approx(randomisation_p(change.tolist()), abs=0.02)
    sure = comparison.set_index(["split", "captioner", "metric"])
    assert sure["p"]["val", "constant", CIDER_D] < 0.01
    assert sure["low"]["val", "constant", CIDER_D] > 0


def test_only_images_that_all_have_captions_of_count(caplog: pytest.LogCaptureFixture) -> None:
    lost = ["val1", "dev0"]
    fewer = {image_id: text for image_id, text in WEAK.items() if image_id not in lost}
    nearest = {image_id: text for image_id, text in NEAREST.items() if image_id != "val2"}
    compared = run({"good": GOOD, "fewer": fewer}, {"nearest": nearest})
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        "3 images of dev and val are not compared: nothing is written about them, or not everybody has a caption of "
        "them"
    ]
    assert compared.leaderboard["images"].tolist() == [9] * 3 + [18] * 3
    assert not set(compared.table["image_id"]) & {*lost, "val2"}
    kept = {image_id: text for image_id, text in GOOD.items() if image_id not in (*lost, "val2")}
    references = {image_id: REFERENCES["val"][image_id] for image_id in kept if image_id in REFERENCES["val"]}
    expected = evaluate({key: kept[key] for key in references}, references, [CIDER_D])[CIDER_D].value
    board = compared.leaderboard.set_index(["split", "captioner"])
    assert board[CIDER_D]["val", "good"] == expected


def test_a_captioner_alone_is_compared_with_nobody() -> None:
    compared = run({"only": GOOD}, {})
    assert compared.comparison.empty
    assert list(compared.comparison.columns) == ["split", "captioner", "metric", "difference", "low", "high", "p"]
    assert compared.leaderboard["captioner"].tolist() == ["only", "only"]


def test_captions_of_test_texts_without_images_and_images_of_two_splits_do_no_harm() -> None:
    again = CAPTIONS[CAPTIONS["image_id"] == "dev0"].assign(split="val")
    both = pd.concat([CAPTIONS, again, caption_table(("dev", None, "a query without an image"))], ignore_index=True)
    table = pd.concat(
        [generated(("test", "t", "a")), written(GOOD), generated(("val", "dev0", "cc"))], ignore_index=True
    )
    compared = compare({"only": table}, BASELINES, both, CAPTIONING, EVALUATION)
    assert compared.leaderboard["images"].tolist() == [10] * 3 + [21] * 3
    of_both = compared.table[compared.table["image_id"] == "dev0"]
    assert of_both[["split", "caption"]].to_numpy().tolist() == [["dev", GOOD["dev0"]], ["val", "cc"]]


def test_everybody_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def counted(table: pd.DataFrame, *rest: object) -> object:
        judged.append(table["caption"].iloc[0])
        return judge(table, *rest)

    monkeypatch.setattr(compare_module, "judge", counted)
    run({"weak": WEAK, "perfect": PERFECT, "ensemble": GOOD})
    assert judged == [said["dev0"] for said in (WEAK, PERFECT, GOOD, CONSTANT, NEAREST)]
