"""Encoding keeps the order, forgets the batches, and leaves the backbone as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from xmodal_kedro.models.backbone import Backbone
from xmodal_kedro.retrieval.embed import embed_images, embed_texts

MANY = [f"{text} {number}" for number in range(4) for text in TEXTS] + TEXTS * 2


@pytest.fixture(scope="module", params=["open_clip", "open_clip_resnet", "chinese_clip"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return small_backbone(request.param)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)


@torch.no_grad()
def one_by_one(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Each alone, normalised by hand."""
    transform = backbone.image_transform(train=False)
    rows = [backbone.encode_image(transform(torch.tensor(image)[None]))[0] for image in pixels]
    return np.stack([(row / row.square().sum().sqrt()).numpy() for row in rows])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 256])
def test_images_are_those_encoded_alone(backbone: Backbone, pixels: np.ndarray, batch_size: int) -> None:
    embeddings = embed_images(backbone, pixels, batch_size=batch_size)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, one_by_one(backbone, pixels), atol=1e-6)


def test_rows_are_taken_in_the_order_given(backbone: Backbone, pixels: np.ndarray) -> None:
    rows = np.array([7, 0, 7, 10])
    np.testing.assert_allclose(embed_images(backbone, pixels, rows, 3), embed_images(backbone, pixels)[rows], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_texts_are_those_encoded_alone(backbone: Backbone, batch_size: int) -> None:
    embeddings = embed_texts(backbone, MANY, batch_size)
    with torch.no_grad():
        alone = [F.normalize(backbone.encode_text(backbone.tokenize([text])), dim=-1)[0].numpy() for text in MANY]
    np.testing.assert_allclose(embeddings, np.stack(alone), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_equal_texts_have_equal_rows_to_the_bit(backbone: Backbone) -> None:
    embeddings = embed_texts(backbone, ["a car", *TEXTS, "a car"], batch_size=2)
    assert np.array_equal(embeddings[0], embeddings[-1])


def test_nothing_gives_no_rows_of_the_right_width(backbone: Backbone, pixels: np.ndarray) -> None:
    assert embed_images(backbone, pixels[:0]).shape == (0, backbone.embed_dim)
    assert embed_images(backbone, pixels, np.array([], dtype=int)).shape == (0, backbone.embed_dim)
    assert embed_texts(backbone, []).shape == (0, backbone.embed_dim)


def test_bf16_is_near_and_still_fp32_rows_of_length_one(backbone: Backbone, pixels: np.ndarray) -> None:
    exact, low = embed_images(backbone, pixels), embed_images(backbone, pixels, precision="bf16")
    assert low.dtype == np.float32
    assert not np.array_equal(exact, low)
    assert (exact * low).sum(1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_does_not_end_training(pixels: np.ndarray, training: bool) -> None:
    backbone = small_backbone("open_clip_resnet").train(training)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    embed_images(backbone, pixels)
    embed_texts(backbone, TEXTS)
    assert backbone.training is training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.is_grad_enabled()


def test_small_images_are_refused_and_no_thread_stays(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"packed images are 8 px.*images.size"):
        embed_images(small_backbone("open_clip"), pixels[:, :8, :8])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_every_small_backbone_encodes_both_sides(pixels: np.ndarray) -> None:
    for name in SMALL:
        backbone = small_backbone(name)
        assert np.isfinite(embed_images(backbone, pixels) @ embed_texts(backbone, TEXTS).T).all()
