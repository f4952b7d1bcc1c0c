"""BLEU equals the paper's formula, pools before it divides, and its interval resamples images."""

import sys

import numpy as np
import pytest

from tests.reference import captions as reference
from xmodal_kedro.captioning.metrics.bleu import bleu, ngrams


@pytest.mark.parametrize("images", [1, 2, 30])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_formula(images, seed):
    captions, references = reference.random_captions(np.random.default_rng(seed), images)
    for order, scores in enumerate(bleu(captions, references), start=1):
        if any(len(caption) >= order for caption in captions):  # shorter ones: see below
            assert scores.value == pytest.approx(reference.bleu(captions, references, order), abs=2e-4)
        for image, score in enumerate(scores.each):
            if len(captions[image]) >= order:
                one = reference.bleu([captions[image]], [references[image]], order)
                assert score == pytest.approx(one, abs=2e-4)
                if one:
                    assert score == pytest.approx(one, rel=1e-6)


def test_the_papers_example():
    # Papineni et al., section 2.1: seven times "the" match "the cat is on the mat" twice.
    references = [[["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]]
    assert bleu([["the"] * 7], references)[0].value == pytest.approx(2 / 7)


def test_the_shorter_of_equally_close_references_counts():
    caption, references = list("aaaa"), [list("aaaaaa"), list("aa")]  # 6 and 2 are both 2 away
    assert bleu([caption], [references])[0].value == pytest.approx(1.0)
    assert bleu([caption], [references[:1]])[0].value == pytest.approx(np.exp(1 - 6 / 4))


def test_the_value_is_not_the_mean():
    captions, references = [list("ab"), list("abcdef")], [[list("ac")], [list("abcdef")]]
    scores = bleu(captions, references)[0]
    assert scores.each.tolist() == pytest.approx([0.5, 1.0])
    assert scores.value == pytest.approx(7 / 8)
    assert scores.pooled


def test_empty_and_short_captions():
    exact = [list("ab"), list("abcdefg")]
    scores = bleu(exact, [[text] for text in exact])
    assert [score.value for score in scores] == pytest.approx([1, 1, 1, 1])
    assert scores[3].each[0] < 0.05  # nothing of length 4 to match
    nothing = bleu([[], []], [[list("ab")], [list("a")]])
    assert [score.value for score in nothing] == [0, 0, 0, 0]


def test_interval_is_that_of_pooled_resamples():
    captions, references = reference.random_captions(np.random.default_rng(3), 25)
    scores = bleu(captions, references)[1]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        rows = rng.integers(0, 25, size=25)
        drawn.append(reference_from_counts(scores.counts[rows].sum(axis=0)))
    low, high = scores.interval(resamples=3000)
    assert (low, high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.01)
    assert low < scores.value < high
    assert scores.interval(resamples=50) == scores.interval(resamples=50)
    assert scores.interval(resamples=50) != scores.interval(resamples=50, seed=1)
    assert np.isnan(scores.interval(resamples=0)).all()


def reference_from_counts(counts):
    """BLEU-2 by hand."""
    p1, p2 = counts[0] / counts[4], counts[1] / counts[5]
    return np.sqrt(p1 * p2) * min(1.0, np.exp(1 - counts[9] / counts[8]))


def test_interval_in_blocks_is_the_same(monkeypatch):
    captions, references = reference.random_captions(np.random.default_rng(4), 10)
    scores = bleu(captions, references)[0]
    whole = scores.interval(resamples=37)
    monkeypatch.setattr(sys.modules[bleu.__module__], "AT_ONCE", 45)
    assert scores.interval(resamples=37) == whole


def test_ngrams():
    assert ngrams(list("aaab"), 2) == {("a", "a"): 2, ("a", "b"): 1}
    assert ngrams(list("ab"), 3) == {}


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ([], [], "no captions"),
        ([["a"]], [], "1 captions .* 0 images"),
        ([["a"], ["b"]], [[["a"]], []], "without a reference.*: 1"),
        ([["a"]], [[[], []]], "without a reference.*: 0"),
    ],
)
def test_what_cannot_be_scored(captions, references, message):
    with pytest.raises(ValueError, match=message):
        bleu(captions, references)
