"""CLIPScore and RefCLIPScore from a member's embeddings, image by image, and what is embedded how often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.captioning.stores import store_of
from tests.models.small import SIZE, small_backbone, small_member
from xmodal_kedro.captioning import clip as clip_module
from xmodal_kedro.captioning.clip import ClipScores
from xmodal_kedro.config.member import EmbedConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.models.checkpoint import Checkpoint

IDS = [f"i{number}" for number in range(7)]
CAPTIONS = {"i5": "a red car", "i0": "", "i3": "two dogs", "i1": "a red car"}
REFERENCES = {
    "i5": ["a car", "a red car", "the car is red"],
    "i0": ["a bird"],
    "i3": ["two dogs run", "a car"],
    "i1": ["a bird", "the sky"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    pixels = np.random.default_rng(1).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    return store_of(tmp_path_factory.mktemp("clip"), IDS, pixels=pixels)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    member = small_member("open_clip").model_copy(update={"embed": EmbedConfig(batch_size=3)})
    return Checkpoint(small_backbone("open_clip", seed=1), member, {}, {})  # its cosines have both signs


@torch.no_grad()
def by_hand(
    checkpoint: Checkpoint, images: ImageStore, captions: dict[str, str], references: dict[str, list[str]]
) -> tuple[list[float], list[float]]:
    """Hessel et al. 2021, section 3: w max(cos(c, v), 0), w = 2.5; H-Mean(CLIP-S, max(max over r of cos(c, r), 0))."""
    backbone = checkpoint.backbone
    look = backbone.image_transform(train=False)

    def text(sentence: str) -> torch.Tensor:
        return backbone.encode_text(backbone.tokenize([sentence]))[0]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return max(float(a @ b / (a.norm() * b.norm())), 0.0)

    scores, both = [], []
    for image_id, caption in captions.items():
        image = backbone.encode_image(look(torch.tensor(images.pixels[IDS.index(image_id)])[None]))[0]
        first = 2.5 * cosine(text(caption), image)
        second = max(cosine(text(caption), text(reference)) for reference in references[image_id])
        scores.append(first)
        both.append(2 * first * second / (first + second) if first + second else 0.0)
    return scores, both


@pytest.mark.parametrize("at_once", [1, 3, 2048])
@pytest.mark.parametrize("kept", [0, 3 * 16 * 4, 1 << 28])
def test_scores_are_those_of_the_formulas(
    checkpoint: Checkpoint, images: ImageStore, monkeypatch: pytest.MonkeyPatch, at_once: int, kept: int
) -> None:
    monkeypatch.setattr(clip_module, "AT_ONCE", at_once)
    monkeypatch.setattr(clip_module, "KEPT", kept)
    clip = ClipScores(checkpoint, images, "cpu")
    for captions in (CAPTIONS, {"i3": "a car", "i6": "the sky", "i0": "a bird"}):
        references = {**REFERENCES, "i6": ["the sea", "a bird"]}
        found = clip(captions, {image_id: references[image_id] for image_id in captions})
        assert list(found) == ["clipscore", "ref_clipscore"]
        scores, both = by_hand(checkpoint, images, captions, references)
        assert found["clipscore"].each.tolist() == pytest.approx(scores, abs=1e-5)
        assert found["ref_clipscore"].each.tolist() == pytest.approx(both, abs=1e-5)
        assert found["clipscore"].value == pytest.approx(np.mean(scores), abs=1e-5)
        assert max(scores) > 0.1
        assert not found["clipscore"].pooled


def test_a_reference_and_an_image_are_embedded_once_for_all_captioners(
    checkpoint: Checkpoint, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    texts: list[str] = []
    embed_images, embed_texts = clip_module.embed_images, clip_module.embed_texts

    def counted_images(backbone: object, pixels: np.ndarray, of: np.ndarray, *rest: object) -> np.ndarray:
        rows.extend(of.tolist())
        assert rest == (3, "cpu", "fp32")
        return embed_images(backbone, pixels, of, *rest)

    def counted_texts(backbone: object, of: list[str], *rest: object) -> np.ndarray:
        texts.extend(of)
        assert rest == (3, "cpu", "fp32")
        return embed_texts(backbone, of, *rest)

    monkeypatch.setattr(clip_module, "embed_images", counted_images)
    monkeypatch.setattr(clip_module, "embed_texts", counted_texts)
    clip = ClipScores(checkpoint, images, "cpu")
    first = clip(CAPTIONS, REFERENCES)
    assert sorted(rows) == [0, 1, 3, 5]
    said = ["a bird", "a car", "a red car", "the car is red", "the sky", "two dogs run"]
    assert sorted(texts) == sorted([*CAPTIONS.values(), *said])
    texts.clear()
    again = clip({**CAPTIONS, "i3": "another"}, REFERENCES)
    assert len(rows) == 4
    assert sorted(texts) == sorted(["a red car", "", "another", "a red car"])
    assert again["clipscore"].each[[0, 1, 3]].tolist() == first["clipscore"].each[[0, 1, 3]].tolist()


def test_no_more_is_kept_than_there_is_room_for(
    checkpoint: Checkpoint, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_module, "KEPT", 2 * 16 * 4)
    clip = ClipScores(checkpoint, images, "cpu")
    for _ in range(2):
        clip(CAPTIONS, REFERENCES)
        assert len(clip._images) == len(clip._references) == 2
        assert all(row.base is None for row in clip._images.values())  # a view would keep all rows


def test_an_image_that_is_not_packed_is_named(checkpoint: Checkpoint, images: ImageStore) -> None:
    with pytest.raises(KeyError, match="'lost'"):
        ClipScores(checkpoint, images, "cpu")({"lost": "a"}, {"lost": ["a"]})
