"""From a member's checkpoint to a captioner's: what is trained on, judged by, written, and gone on from."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.captioning.stores import FINGERPRINTS, store_of
from tests.models.small import SIZE, small_backbone, small_member
from xmodal_kedro.captioning.checkpoint import begin_captioner, open_captioner
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.captioning.dev import DevCaptions
from xmodal_kedro.captioning.metrics import evaluate
from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig, CaptionTrainConfig
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import CleanTextConfig
from xmodal_kedro.data.image_store import META, ImageStore
from xmodal_kedro.data.manifest import read_manifest, seal
from xmodal_kedro.data.tables import table_fingerprint
from xmodal_kedro.models.checkpoint import write_checkpoint
from xmodal_kedro.pipelines.caption import training
from xmodal_kedro.pipelines.caption.training import CaptionJob, train_and_write

torch.set_num_threads(1)
SENTENCES = ["A red car.", "一只狗在草地上", "A female pedestrian walks."]
SPLITS = ["train"] * 6 + ["dev"] * 5 + ["val"]


def captions() -> pd.DataFrame:
    """Two sentences per image, one of them twice on dev, and a test image without."""
    rows = [
        {"image_id": f"i{number:02}", "text": SENTENCES[(number + turn) % 3], "split": split}
        for number, split in enumerate(SPLITS)
        for turn in (0, 1, *([1] if split == "dev" else []))
    ]
    rows.append({"image_id": "i12", "text": None, "split": "test"})
    table = pd.DataFrame(rows)
    return table.assign(text_id=[f"t{row}" for row in range(len(table))], group="all")


def captioner(**train: Any) -> CaptionerConfig:
    settings = {"epochs": 1, "batch_size": 5, "lr": 1e-3, "captions_per_image": 2, **train}
    return CaptionerConfig(name="writer", member="gpt", train=CaptionTrainConfig(**settings))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of images and the checkpoint of a member."""
    folder = tmp_path_factory.mktemp("captions")
    pixels = np.random.default_rng(0).integers(0, 256, (13, SIZE, SIZE, 3)).astype(np.uint8)
    store = store_of(folder / "images", [f"i{number:02}" for number in range(13)], pixels=pixels)
    (store.directory / META).write_text(json.dumps({"size": SIZE, **FINGERPRINTS}))
    seal(store.directory, "images")
    write_checkpoint(folder / "member", small_backbone("res2net_gpt"), small_member("res2net_gpt"), {}, {})
    return folder


@pytest.fixture
def job(place: Path, tmp_path: Path) -> CaptionJob:
    return CaptionJob(
        captioner(),
        CaptioningConfig(decoding=DecodingConfig(method="beam", max_steps=12)),
        RuntimeConfig(device="cpu"),
        place / "member",
        captions(),
        place / "images",
        tmp_path / "checkpoint",
        tmp_path / "states",
    )


def test_a_checkpoint_comes_out_that_says_what_made_it(job: CaptionJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    history = train_and_write(job)
    assert history["epoch"].tolist() == [0, 1]
    assert {"dev/cider_d_characters", "dev/distinct_captions", "dev/repetition_characters"} <= set(history.columns)
    made_by = read_manifest(job.checkpoint, "captioner", hashes=True)["fingerprints"]
    assert made_by["captions"] == table_fingerprint(job.captions)
    assert made_by["images"] == "f"
    assert made_by["member"] == read_manifest(job.member)["fingerprints"]["weights"] != made_by["weights"]
    metrics = json.loads((job.checkpoint / "metrics.json").read_text())
    kept = history.iloc[int(metrics["epoch"])]
    assert metrics["dev/cider_d_characters"] == kept["dev/cider_d_characters"]
    opened = open_captioner(job.checkpoint, job.checkpoint)
    assert opened.name == "writer"
    assert "12 captions of 6 images on cpu" in caplog.text
    assert re.search(
        r"teacher_forcing, epoch 1 of \d+: loss \d\.\d{3}, dev/cider_d_characters \d\.\d{4}, dev/dist", caplog.text
    )
    again = train_and_write(
        replace(job, checkpoint=job.checkpoint.with_name("again"))
    )  # as where the run failed after it: nothing is trained again
    assert "writer: had ended with epoch 1 of an interrupted run" in caplog.text
    pd.testing.assert_frame_equal(again, history)


def test_what_is_written_is_what_was_judged(job: CaptionJob, place: Path) -> None:
    job = replace(job, captioner=captioner(keep="last", epochs=2, metric="rouge_l"))
    history = train_and_write(job)
    store = ImageStore.open(place / "images")
    opened = open_captioner(job.checkpoint, job.checkpoint)
    ids = [f"i{number:02}" for number in range(6, 11)]
    photos = torch.from_numpy(store.pixels[store.rows(ids)])
    found = decode(opened, photos, DecodingConfig(method="greedy", max_steps=12))
    table = job.captions.set_index("image_id")["text"]
    references = {one: sorted(set(table[one])) for one in ids}
    written = {one: caption.text for one, caption in zip(ids, found, strict=True)}
    scores = evaluate(written, references, ["cider_d_characters", "rouge_l_characters"])
    for name, score in scores.items():
        assert history[f"dev/{name}"].iloc[-1] == pytest.approx(score.value)
    assert history["dev/distinct_captions"].iloc[-1] == len(set(written.values())) / 5


@pytest.fixture(scope="module")
def checkpointing(place: Path) -> Path:
    """The same member, but for the activations that its training computes again."""
    member = small_member("res2net_gpt")
    member = member.model_copy(update={"backbone": member.backbone.model_copy(update={"grad_checkpointing": True})})
    write_checkpoint(place / "checkpointing", small_backbone("res2net_gpt"), member, {}, {})
    return place / "checkpointing"


def test_a_member_that_computes_activations_again_has_captioners_that_do_and_are_the_same_to_the_bit(
    job: CaptionJob, checkpointing: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights, statistics of batch norms and all that is judged by them."""
    begun = []

    def spied(*given: Any, **named: Any) -> Any:
        begun.append(begin_captioner(*given, **named))
        return begun[-1]

    monkeypatch.setattr(training, "begin_captioner", spied)
    found = []
    for member in (job.member, checkpointing):
        directory = tmp_path / f"of_{member.name}"
        own = replace(job, member=member, checkpoint=directory, states=tmp_path / f"states_{member.name}")
        history = train_and_write(replace(own, captioner=captioner(keep="last")))
        found.append((history.drop(columns="captions_per_second"), read_manifest(directory)["fingerprints"]["weights"]))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert [one.captioner.image_encoder.trunk.grad_checkpointing for one in begun] == [False, True]


@pytest.mark.parametrize("again", [False, True], ids=["activations_kept", "activations_computed_again"])
def test_a_training_goes_on_where_it_was(
    job: CaptionJob, checkpointing: Path, again: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    member = checkpointing if again else job.member
    job = replace(job, captioner=captioner(keep="last", epochs=2), member=member)
    whole = train_and_write(replace(job, checkpoint=tmp_path / "whole", states=tmp_path / "other"))

    def full(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_captioner", full)
        with pytest.raises(OSError, match="no space left"):
            train_and_write(job)
    resumed = train_and_write(job)
    timed = "captions_per_second"
    pd.testing.assert_frame_equal(resumed.drop(columns=timed), whole.drop(columns=timed))
    weights = [read_manifest(one)["fingerprints"]["weights"] for one in (job.checkpoint, tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_dev_images_are_taken_evenly_and_always_the_same(place: Path) -> None:
    store, table = ImageStore.open(place / "images"), captions()
    table.loc[len(table)] = {"image_id": "unpacked", "text": "x", "split": "dev", "text_id": "t", "group": "all"}
    dev = DevCaptions.of(table, store, "cider_d", CaptioningConfig(dev_images=3), torch.device("cpu"))
    assert dev is not None
    assert list(dev.references) == ["i06", "i08", "i10"]
    assert dev.rows.tolist() == [6, 8, 10]
    assert all(len(texts) == 2 for texts in dev.references.values())  # the sentence that is there twice counts once
    writer = begin_captioner(small_backbone("res2net_gpt"), captioner()).eval()
    assert dev(writer) == dev(writer)


def test_without_references_of_dev_the_last_epoch_is_kept_or_nothing_is(job: CaptionJob) -> None:
    table = job.captions[job.captions["split"] != "dev"]
    with pytest.raises(
        ValueError, match=r"writer: train.keep 'best' .* need references of dev images, .* set keep to last"
    ):
        train_and_write(replace(job, captions=table))
    history = train_and_write(replace(job, captions=table, captioner=captioner(keep="last")))
    assert not [name for name in history if name.startswith("dev/")]
    assert json.loads((job.checkpoint / "metrics.json").read_text())["epoch"] == 1


def test_captions_are_cleaned_as_those_that_the_vocabulary_was_learned_from(
    job: CaptionJob, caplog: pytest.LogCaptureFixture
) -> None:
    member = small_member("res2net_gpt").model_copy(deep=True)
    table = job.captions.assign(text=job.captions["text"] + "?#")
    train_and_write(replace(job, captions=table))
    assert "of the characters to learn are not in its member's vocabulary" in caplog.text
    caplog.clear()
    clean = CleanTextConfig(lower=False, blank="?#")
    member = member.model_copy(update={"train": member.train.model_copy(update={"clean_text": clean})})
    write_checkpoint(job.member.with_name("cleaned"), small_backbone("res2net_gpt"), member, {}, {})
    checkpoint = job.checkpoint.with_name("of_cleaned")
    train_and_write(replace(job, captions=table, member=job.member.with_name("cleaned"), checkpoint=checkpoint))
    assert "vocabulary" not in caplog.text


def test_nothing_to_train_on_is_an_error(job: CaptionJob) -> None:
    with pytest.raises(ValueError, match="no train caption has an image"):
        train_and_write(replace(job, captions=job.captions[job.captions["split"] == "dev"]))


@pytest.mark.parametrize(("best", "warned"), [(0, False), (1, True), (2, False)])
def test_a_kept_captioner_that_says_one_thing_of_all_images_is_named(
    place: Path, best: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    dev = DevCaptions.of(
        captions(), ImageStore.open(place / "images"), "cider_d", CaptioningConfig(), torch.device("cpu")
    )
    history = pd.DataFrame({"dev/distinct_captions": [0.6, 0.2, 0.4]})  # of five images
    result: Any = SimpleNamespace(history=history, best_epoch=best)
    training._warn_of_collapse("writer", dev, result)
    assert ("nearly all captions of dev are the same" in caplog.text) == warned
    training._warn_of_collapse("writer", None, result)


def test_one_dev_image_is_too_few_to_judge_by(place: Path) -> None:
    table, store = captions(), ImageStore.open(place / "images")
    dev = table[table["split"] == "dev"]
    alone = dev[dev["image_id"] == dev["image_id"].iloc[0]]
    assert DevCaptions.of(alone, store, "cider_d", CaptioningConfig(), torch.device("cpu")) is None


def test_dev_images_of_which_only_punctuation_is_said_do_not_count(place: Path) -> None:
    table, store = captions(), ImageStore.open(place / "images")
    wordless = table["image_id"] == table.loc[table["split"] == "dev", "image_id"].iloc[0]
    table.loc[wordless, "text"] = "。"
    dev = DevCaptions.of(table, store, "cider_d", CaptioningConfig(), torch.device("cpu"))
    assert dev is not None
    assert list(dev.references) == ["i07", "i08", "i09", "i10"]


def test_all_that_decides_the_weights_is_in_the_key(job: CaptionJob) -> None:
    cpu, made_by = torch.device("cpu"), {"captions": "c", "images": "i", "member": "m"}
    greedy = CaptioningConfig(decoding=DecodingConfig(max_steps=12))
    jobs = [
        job,
        replace(job, captioner=captioner(lr=2e-3)),
        replace(job, captioning=CaptioningConfig(decoding=DecodingConfig(max_steps=13))),
        replace(job, captioning=greedy.model_copy(update={"dev_images": 9})),
        replace(job, captioning=greedy.model_copy(update={"tokeniser": "ptb"})),
    ]
    keys = [training._key(one, made_by, cpu) for one in jobs]
    keys += [training._key(job, {**made_by, name: "x"}, cpu) for name in made_by]
    assert len(set(keys)) == len(keys)
    assert training._key(replace(job, captioning=greedy), made_by, cpu) == keys[0]  # training decodes greedily anyway
