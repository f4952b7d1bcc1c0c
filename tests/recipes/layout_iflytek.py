"""The files of the iFLYTEK challenge from Flickr8k and its human Chinese sentences, and a small Chinese-CLIP."""

from __future__ import annotations

import random
from pathlib import Path

from tests.recipes.flickr import held_out_photos, save_photos, train_photos, write_csv
from tests.recipes.sizes import Size
from tests.recipes.weights import save_chinese_clip


def lay_out(project: Path, size: Size) -> None:
    """Write `data/01_raw/iflytek_twin`: xfdata/ as published, models/ with random weights, and truth.csv beside them.

    The candidates are a bijection, as in the challenge: one sentence per held-out photo, both in an order of their own.
    `truth.csv` (`text,image_name`, in the order of the texts) is what the challenge keeps to itself; no run reads it.
    """
    root = project / "data/01_raw/iflytek_twin"
    dataset = root / "xfdata/dataset"
    train, candidates = train_photos("zh", size.train), held_out_photos("zh", size.held_out)
    save_photos([*train, *candidates], dataset / "images")
    pairs = [(photo.name, sentence) for photo in train for sentence in photo.sentences]
    write_csv(dataset / "train.csv", ["image_name", "text"], pairs)
    order = random.Random(0)
    truth = [(photo.sentences[0], photo.name) for photo in order.sample(candidates, len(candidates))]
    names = sorted(photo.name for photo in candidates)
    write_csv(dataset / "test_candidate_image.csv", ["image_name"], [(name,) for name in names])
    texts = [(index, text) for index, (text, _) in enumerate(truth)]
    write_csv(dataset / "test_candidate_text.csv", ["idx", "text"], texts)
    write_csv(root / "xfdata/sample_submit.csv", ["idx", "image_name"], [(index, names[0]) for index, _ in texts])
    write_csv(root / "truth.csv", ["text", "image_name"], truth)
    save_chinese_clip(root / "models/chinese-clip")
