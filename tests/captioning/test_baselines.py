"""Captions without a model are the best of their kind: exhaustively, by the paper's formulas, and ties by order."""

import itertools
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import SHARED
from tests.reference import captions as reference
from xmodal_kedro.captioning import baselines
from xmodal_kedro.captioning.baselines import SIDE, TrainSentences, baseline_captions, nearest_rows, thumbnails
from xmodal_kedro.captioning.metrics.cider import Frequencies, cider_d
from xmodal_kedro.config.data import ImagesConfig
from xmodal_kedro.data.image_store import ImageStore, pack


def sentences(seed: int, images: int) -> dict[str, list[str]]:
    """Random sentences of one to nine letters, which repeat a lot; no image has one twice."""
    _, references = reference.random_captions(np.random.default_rng(seed), images)
    return {f"{place}.png": list(dict.fromkeys(map("".join, texts))) for place, texts in enumerate(references)}


def test_the_constant_caption_is_the_best_of_all_sentences():
    clipping_matters = 0
    for seed in range(6, 10):
        references = sentences(seed, 5)
        texts = [[list(text) for text in of_image] for of_image in references.values()]
        candidates = list(dict.fromkeys(itertools.chain(*references.values())))
        scores = [np.mean(reference.cider([list(c)] * len(texts), texts, texts, True)) for c in candidates]
        train = TrainSentences(references, "characters")
        assert train.best() == candidates[int(np.argmax(scores))]
        means = baselines._MeanScores(Frequencies(texts), texts)
        rows = np.arange(sum(map(len, texts)))
        first = [list(itertools.chain(*references.values())).index(c) for c in candidates]
        assert [means.of(row) for row in first] == pytest.approx(scores, abs=1e-12)
        bounds = means.bounds(rows)
        assert (bounds[first] >= np.array(scores) - 1e-12).all()
        clipping_matters += bounds[first].argmax() != np.argmax(scores)
    assert clipping_matters  # else the bound alone would do


@pytest.mark.parametrize("seed", range(2, 5))
def test_the_constant_caption_of_a_larger_corpus(seed):
    references = sentences(seed, 40)
    texts = [[list(text) for text in of_image] for of_image in references.values()]
    frequencies = Frequencies(texts)
    candidates = list(dict.fromkeys(itertools.chain(*references.values())))
    scores = np.array([cider_d([list(c)] * len(texts), texts, frequencies).value for c in candidates])
    assert TrainSentences(references, "characters").best() == candidates[int(scores.argmax())]


def test_the_first_of_equal_constants():
    # By symmetry every sentence scores the same.
    assert TrainSentences({"1": ["ab", "cd"], "2": ["ef", "gh"]}, "characters").best() == "ab"
    assert TrainSentences({"1": ["gh", "ef"], "2": ["ab", "cd"]}, "characters").best() == "gh"
    # The same tokens are one candidate, written as it stands first.
    assert TrainSentences({"1": ["Ab!"], "2": ["ab"], "3": ["cd"]}, "characters").best() == "Ab!"


def test_sentences_that_every_image_has_weigh_nothing():
    train = TrainSentences({"1": ["ab", "ab!"], "2": ["ab", "abc"]}, "characters")
    assert train.best() == "abc"
    assert TrainSentences({"1": ["ab"], "2": ["ab"]}, "characters").best() == "ab"


def test_one_image_is_not_enough():
    train = TrainSentences({"1": ["ab"], "2": ["。"], "3": []}, "characters")
    assert train.images == ["1"]
    with pytest.raises(ValueError, match=r"1 image.*at least two"):
        train.best()


@pytest.mark.parametrize("seed", range(3))
def test_the_consensus_of_an_image_is_closest_to_its_other_sentences(seed):
    references = sentences(seed, 6)
    corpus = [[list(text) for text in of_image] for of_image in references.values()]
    train = TrainSentences(references, "characters")
    for place, (image, texts) in enumerate(references.items()):
        assert train.images[place] == image
        scores = [
            reference.cider([list(text)], [[list(t) for t in texts if t != text]], corpus, True)[0]
            for text in texts
            if len(texts) > 1
        ]
        assert train.consensus(place) == texts[int(np.argmax(np.round(scores, 9))) if scores else 0]


def test_the_first_of_equal_sentences_is_the_consensus():
    train = TrainSentences({"1": ["。", "abc", "bcd"], "2": ["x"], "3": ["pq", "rs", "tu"]}, "characters")
    assert [train.consensus(place) for place in range(3)] == ["abc", "x", "pq"]


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_the_nearest_photo_and_the_first_of_equal_ones(monkeypatch, block):
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (23, SIDE, SIDE, 3), dtype=np.uint8)
    gallery[20], gallery[21] = gallery[4], gallery[9]
    queries = np.concatenate([gallery[[4, 9, 20, 22]], rng.integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)])
    queries[3, 0, 0, 0] ^= 1
    monkeypatch.setattr(baselines, "AT_ONCE", block * len(gallery))
    found = nearest_rows(gallery, queries)
    distances = [[int(((q.astype(int) - g.astype(int)) ** 2).sum()) for g in gallery] for q in queries]
    assert found.tolist() == [row.index(min(row)) for row in distances]
    assert found[:4].tolist() == [4, 9, 4, 22]
    assert nearest_rows(gallery, queries[:0]).shape == (0,)


@pytest.mark.parametrize("size", [8, 16, 40, 64])
def test_thumbnails_are_means_over_areas(size):
    pixels = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    found = thumbnails(pixels, np.array([3, 0]))
    # Every pixel in SIDE x SIDE equal parts, so that each area is made of whole parts.
    parts = pixels[[3, 0]].repeat(SIDE, 1).repeat(SIDE, 2).reshape(2, SIDE, size, SIDE, size, 3)
    assert np.abs(found - parts.mean((2, 4))).max() <= 0.5 + 1e-9
    assert thumbnails(pixels, np.array([], dtype=np.int64)).shape == (0, SIDE, SIDE, 3)


COLORS = {"a.png": (250, 0, 0), "b.png": (0, 250, 0), "c.png": (0, 0, 250), "d.png": (240, 9, 0), "e.png": (9, 0, 240)}


def store_and_table(folder: Path) -> tuple[ImageStore, pd.DataFrame]:
    for name, color in COLORS.items():
        Image.new("RGB", (16, 16), color).save(folder / name)
    store, _ = pack([(name, name) for name in COLORS], folder, folder / "store", ImagesConfig(size=16, workers=1))
    rows = [
        *[("a.png", "train", text) for text in ("红车停了", "一辆红车", "一辆红色的车")],
        *[("b.png", "train", text) for text in ("绿草", "一片绿草")],
        *[("c.png", "train", text) for text in ("蓝天", "蓝天白云", "蓝天白云")],
        *[("d.png", "dev", "一辆车"), ("e.png", "val", "天空"), ("a.png", "test", None)],
    ]
    return store, pd.DataFrame(rows, columns=["image_id", "split", "text"])


def test_images_of_dev_and_val_are_captioned(tmp_path):
    store, captions = store_and_table(tmp_path)
    found = baseline_captions(captions, store, "characters")
    assert list(found) == ["constant", "nearest"]
    assert list(found["constant"]) == list(found["nearest"]) == ["d.png", "e.png"]
    assert len(set(found["constant"].values())) == 1
    assert found["nearest"] == {"d.png": "一辆红车", "e.png": "蓝天"}


def test_an_image_that_is_not_packed_is_left_out(tmp_path):
    store, captions = store_and_table(tmp_path)
    lost = pd.DataFrame({"image_id": ["f.png", "g.png"], "split": ["train", "val"], "text": ["一辆车", "天空"]})
    found = baseline_captions(pd.concat([lost, captions]), store, "characters")
    assert found == baseline_captions(captions, store, "characters")


def test_without_train_or_without_references_there_is_nothing_to_compare_with(tmp_path, caplog):
    store, captions = store_and_table(tmp_path)
    caplog.set_level(logging.INFO)
    assert baseline_captions(captions[captions["split"] != "train"], store, "characters") == {}
    assert "0 images of train and 2 of dev and val have sentences" in caplog.text
    assert baseline_captions(captions[captions["split"] == "train"], store, "characters") == {}
    assert baseline_captions(captions[captions["image_id"].isin(["a.png", "d.png"])], store, "characters") == {}


def test_a_large_train_is_thinned_evenly(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    references = {str(number): ["a"] for number in range(10)}
    assert baselines._thinned(references) == references
    assert not caplog.text
    monkeypatch.setattr(baselines, "AT_MOST", 4)
    assert list(baselines._thinned(references)) == ["0", "2", "5", "7"]
    assert "4 of 10 train images" in caplog.text


def test_flickr8k_takes_seconds():
    folder = SHARED / "flickr8k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tables = [pd.read_parquet(folder / f"train-{part}.parquet", columns=["image", "captions_zh"]) for part in (0, 1)]
    references = {image: list(texts) for table in tables for image, texts in table.itertuples(index=False)}
    began = time.process_time()
    train = TrainSentences(references, "characters")
    assert train.best() == "两只狗在草地上玩耍。"  # as scoring every one of the sentences in full says
    assert time.process_time() - began < 60
    assert len(train.images) == 6000
