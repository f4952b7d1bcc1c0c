"""`datasets/{train,valid}` from Flickr8k and its English sentences, and a small ResNet with a small RoBERTa."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.flickr import held_out_photos, save_photos, train_photos, write_csv
from tests.recipes.sizes import Size
from tests.recipes.weights import save_resnet_roberta


def lay_out(project: Path, size: Size) -> None:
    """Write `data/01_raw/contrastive_twin`: datasets/ as published, and models/ with random weights.

    As in the publication a train photo has five rows, a photo of the validation one.
    """
    root = project / "data/01_raw/contrastive_twin"
    train, valid = train_photos("en", size.train), held_out_photos("en", size.held_out)
    for split, photos, sentences in (("train", train, 5), ("valid", valid, 1)):
        folder = root / "datasets" / split
        save_photos(photos, folder / "images")
        rows = [(photo.name, sentence) for photo in photos for sentence in photo.sentences[:sentences]]
        write_csv(folder / "captions.csv", ["filename", "caption"], rows)
    save_resnet_roberta(root / "models/resnet-roberta")
