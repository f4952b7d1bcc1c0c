"""CLIPScore and RefCLIPScore equal their formulas row by row, for any lengths of vectors and orders of references."""

import math

import numpy as np
import pytest

from xmodal_kedro.captioning.metrics.clipscore import clip_score, ref_clip_score


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.r_[np.arange(9), rng.integers(0, 9, size=14)])
    images, captions, references = (rng.normal(size=(n, 3)) for n in (9, 9, 23))
    return images, captions, references, owners


def test_equal_the_formulas(vectors):
    images, captions, references, owners = vectors
    alone = [2.5 * max(cosine(image, caption), 0) for image, caption in zip(images, captions, strict=True)]
    assert min(alone) == 0 < max(alone)  # both sides of the cut
    scores = clip_score(images.astype(np.float32) * 7, captions)
    assert scores.each == pytest.approx(alone, abs=1e-6)
    assert scores.value == pytest.approx(np.mean(alone), abs=1e-6)
    expected = []
    for row, score in enumerate(alone):
        closest = max(
            cosine(captions[row], text) for text, owner in zip(references, owners, strict=True) if owner == row
        )
        closest = max(closest, 0)
        expected.append(2 / (1 / score + 1 / closest) if score and closest else 0)
    both = ref_clip_score(images, captions, references, owners)
    assert both.each == pytest.approx(expected)
    low, high = both.interval(resamples=200)
    assert low < both.value < high


def test_bounds():
    one = np.eye(2)
    assert clip_score(one, one).each.tolist() == [2.5, 2.5]
    assert clip_score(one, -one).each.tolist() == [0, 0]
    assert ref_clip_score(one, one, -one, np.arange(2)).each.tolist() == [0, 0]  # no reference is near
    assert ref_clip_score(one, one, one, np.arange(2)).value == pytest.approx(2 * 2.5 / 3.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((8, 3))}, r"\(8, 3\).*\(9, 3\)"),
        ({"images": np.ones(3)}, r"images must be a matrix"),
        ({"captions": np.empty((0, 3))}, "captions must be a matrix with at least one row"),
        ({"captions": np.r_[np.ones((8, 3)), [[0, 0, 0]]]}, "captions have rows .*: 8"),
        ({"images": np.r_[[[np.nan, 0, 0]], np.ones((8, 3))]}, "images have rows .*: 0"),
        ({"references": np.ones((23, 4))}, "3 dimensions and references 4"),
        ({"owners": np.zeros(22, dtype=int)}, "one whole number for each of the 23"),
        ({"owners": np.zeros(23)}, "float64"),
        ({"owners": np.full(23, 9)}, "reach 9..9"),
        ({"owners": np.arange(23) % 8}, "none for the rows 8"),
    ],
)
def test_what_does_not_fit_is_named(vectors, change, message):
    arguments = dict(zip(("images", "captions", "references", "owners"), vectors, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ref_clip_score(**arguments)
