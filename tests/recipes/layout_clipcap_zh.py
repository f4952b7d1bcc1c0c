"""The corpora of the captioning recipe from Flickr8k: with Chinese sentences, and beside them with English ones."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from tests.recipes.flickr import Photo, held_out_photos, save_photos, train_photos, write_csv
from tests.recipes.sizes import Size

CORPORA = ("flickr8k_cn", "flickr30k_cn", "coco_cn", "aic_icc", "hlb")
TESTED = 5  # of as many held-out photos one is a photo of test as well, mirrored


def lay_out(project: Path, size: Size) -> None:
    """Write `data/01_raw/clipcap_zh_twin`, and `clipcap_zh_twin_en` with the same photos and English sentences.

    The train photos are dealt to the folders of the corpora; there is one source each, as the recipe lists them. All
    held-out photos are val. The first of them, mirrored, are the photos of test, which have no sentences.
    """
    lay_out_language(project / "data/01_raw/clipcap_zh_twin", "zh", size)
    english = project / "data/01_raw/clipcap_zh_twin_en"
    shutil.rmtree(english, ignore_errors=True)
    lay_out_language(english, "en", size)


def lay_out_language(root: Path, language: str, size: Size) -> None:
    """Write the corpora, val and test with sentences of a language."""
    train, held_out = train_photos(language, size.train), held_out_photos(language, size.held_out)
    for number, corpus in enumerate(CORPORA):
        _write_corpus(root / corpus, train[number :: len(CORPORA)])
    _write_corpus(root / "val", held_out)
    save_photos(map(_mirrored, held_out[: size.held_out // TESTED]), root / "test")


def _mirrored(photo: Photo) -> Photo:
    """The same pixels in two splits would be reported as a leak."""
    encoded = BytesIO()
    ImageOps.mirror(Image.open(BytesIO(photo.encoded))).save(encoded, "JPEG", quality=95)
    return photo._replace(encoded=encoded.getvalue())


def _write_corpus(folder: Path, photos: list[Photo]) -> None:
    """Photos, and a row per sentence."""
    save_photos(photos, folder / "images")
    rows = [(photo.name, sentence) for photo in photos for sentence in photo.sentences]
    write_csv(folder / "captions.csv", ["images", "captions"], rows)
