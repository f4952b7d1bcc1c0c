"""Adaption scores against one text at a time, and in the cases that the paper leaves open."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.reference import adaption as slow
from xmodal_kedro.retrieval.rerank.adaption import adapted_queries, adaption_scores, reciprocal


def unit(*shape: int, seed: int, around: float = 1.0) -> np.ndarray:
    """Vectors of length 1 in a cone, as image features are."""
    axis = np.random.default_rng(99).normal(size=shape[-1])
    vectors = np.random.default_rng(seed).normal(size=shape) + around * axis
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def scores(text: np.ndarray, images: np.ndarray, mirrored: np.ndarray | None = None, **options: int) -> np.ndarray:
    turned = None if mirrored is None else torch.from_numpy(mirrored)
    return adaption_scores(torch.from_numpy(text), torch.from_numpy(images), turned, **options).numpy()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("candidates", "anchors", "neighbours"), [(12, 5, 3), (12, 12, 11), (25, 10, 10), (3, 10, 10), (2, 1, 1), (1, 4, 4)]
)
def test_scores_are_those_of_the_formulas(candidates: int, anchors: int, neighbours: int, mirrored: bool) -> None:
    texts, images = unit(6, 16, seed=0), unit(6, candidates, 16, seed=1)
    turned = unit(6, candidates, 16, seed=2) * 0.3 + images * 0.7 if mirrored else None
    found = scores(texts, images, turned, anchors=anchors, neighbours=neighbours)
    assert found.dtype == np.float32
    for row, text in enumerate(texts):
        views = None if turned is None else turned[row]
        expected = slow.adaption_scores(text, images[row], views, anchors, neighbours)
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def test_negative_similarities_weigh_nothing() -> None:
    texts, images = unit(4, 6, seed=3, around=0.0), unit(4, 8, 6, seed=4, around=0.0)
    assert (images[0] @ images[0].T).min() < -0.3
    found = scores(texts, images, anchors=4, neighbours=7)
    expected = [slow.adaption_scores(t, i, None, 4, 7) for t, i in zip(texts, images, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_adapted_query_lies_among_its_images_whatever_the_solver_signs() -> None:
    images = unit(50, 7, 12, seed=5)
    for texts in (unit(50, 12, seed=6), -images.mean(1)):
        adapted = adapted_queries(torch.from_numpy(texts), torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(np.linalg.norm(adapted, axis=1), 1)
        assert ((adapted[:, None] * images.mean(1, keepdims=True)).sum(-1) > 0).all()


def test_equal_cosines_weigh_the_same_and_flat_anchors_leave_the_text() -> None:
    image = unit(1, 8, seed=7)
    alike = torch.from_numpy(np.repeat(image[None], 4, axis=1))
    text = torch.from_numpy(unit(1, 8, seed=8))
    centred = image - image.mean()
    np.testing.assert_allclose(adapted_queries(text, alike), centred / np.linalg.norm(centred), atol=1e-9)
    flat = torch.full((1, 3, 8), 8**-0.5, dtype=torch.float64)
    assert torch.equal(adapted_queries(text, flat), text)
    assert np.isfinite(scores(text.numpy(), flat.numpy())).all()


def test_identical_images_tie() -> None:
    images = unit(3, 9, 10, seed=9)
    images[:, [4, 7]] = images[:, [1]]
    found = scores(unit(3, 10, seed=10), images, anchors=5, neighbours=8)
    assert (found[:, [4, 7]] == found[:, [1]]).all()


def test_reciprocity_is_symmetric_and_takes_both_sides() -> None:
    alike = torch.tensor([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.8], [0.2, 0.8, 1.0]]])  # 2 likes 1, who likes 0
    assert reciprocal(alike, 1)[0].nonzero().tolist() == [[0, 1], [1, 0]]
    assert reciprocal(alike, 2)[0].sum() == 6
    assert reciprocal(torch.ones(2, 1, 1), 3).sum() == 0


def test_a_crowd_of_images_brings_forward_its_own_and_lets_a_stranger_fall() -> None:
    """Texts live beside images: a stranger is first by the text alone, and the others agree about each other."""
    rng = np.random.default_rng(11)
    crowd = unit(1, 16, seed=12) + 0.15 * rng.normal(size=(9, 16))
    stranger = rng.normal(size=16)
    images = np.concatenate([stranger[None] / np.linalg.norm(stranger), crowd])
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    text = images[0] + 0.8 * crowd.mean(0)
    text /= np.linalg.norm(text)
    order = np.argsort(-(images @ text))
    assert order[0] == 0
    again = scores(text[None], images[order][None], anchors=10, neighbours=5)[0]
    assert np.argsort(-again)[-1] == 0
