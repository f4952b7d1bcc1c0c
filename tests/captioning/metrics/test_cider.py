"""CIDEr-D and CIDEr equal the paper's formulas, with document frequencies of the references or of another corpus."""

import math

import numpy as np
import pytest

from tests.reference import captions as reference
from xmodal_kedro.captioning.metrics.cider import CiderReward, Frequencies, cider, cider_d


@pytest.mark.parametrize("images", [2, 3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formulas(images, seed):
    captions, references = reference.random_captions(np.random.default_rng(seed), images)
    for measure, d in ((cider_d, True), (cider, False)):
        scores = measure(captions, references)
        expected = reference.cider(captions, references, references, d)
        assert scores.each == pytest.approx(expected, abs=1e-12)
        assert scores.value == pytest.approx(np.mean(expected))


def test_another_corpus():
    captions, references = reference.random_captions(np.random.default_rng(5), 6)
    _, corpus = reference.random_captions(np.random.default_rng(6), 15)
    captions[0] = ["a", "z", "z"]  # a token that the corpus does not have weighs most
    references[0] = [["z", "z", "b"]]
    for measure, d in ((cider_d, True), (cider, False)):
        each = measure(captions, references, Frequencies(corpus)).each
        assert each == pytest.approx(reference.cider(captions, references, corpus, d), abs=1e-12)
        assert not np.allclose(each, measure(captions, references).each)
    assert len(cider_d(captions[:1], references[:1], Frequencies(corpus)).each) == 1


def test_a_reward_is_the_score_of_every_caption_of_an_image():
    captions, references = reference.random_captions(np.random.default_rng(7), 5)
    _, corpus = reference.random_captions(np.random.default_rng(8), 9)
    corpus[2:7] = references
    reward = CiderReward(corpus)
    for image in range(5):
        found = reward(image + 2, [*captions, []])
        repeated = [references[image]] * 5
        assert found == pytest.approx([*reference.cider(captions, repeated, corpus, True), 0.0], abs=1e-12)
        assert found[:-1] == cider_d(captions, repeated, Frequencies(corpus)).each.tolist()
    assert reward(2, []) == []
    with pytest.raises(ValueError, match=r"1 image"):
        CiderReward(corpus[:1])


def test_the_truth_scores_ten_and_an_empty_caption_nothing():
    references = [[list("abcde")], [list("fghij")], [list("klmno")]]
    captions = [list("abcde"), [], list("xyz")]
    for measure in (cider_d, cider):
        assert measure(captions, references).each.tolist() == pytest.approx([10, 0, 0])


def test_only_cider_d_sees_repetition_and_length():
    references = [[["a", "dog", "runs"]], [["b", "x", "y"]]]
    stuttering = [["dog"] * 9, ["b"]]
    d, plain = cider_d(stuttering, references).each, cider(stuttering, references).each
    # unigrams only: cosine of (dog) with (a, dog, runs) is 1/sqrt(3)
    assert plain[0] == pytest.approx(10 / 4 / math.sqrt(3))
    assert d[0] == pytest.approx(10 / 4 / math.sqrt(3) / 9 * math.exp(-(6**2) / 72))
    assert cider_d(stuttering, references, sigma=1e6).each[0] == pytest.approx(10 / 4 / math.sqrt(3) / 9)


def test_what_every_image_has_weighs_nothing():
    references = [[["a", "dog"]], [["a", "cat"]]]
    assert cider_d([["a"], ["a"]], references).each.tolist() == [0, 0]


def test_one_image_alone_cannot_be_weighed():
    with pytest.raises(ValueError, match=r"1 image.*larger corpus"):
        cider_d([["a"]], [[["a"]]])
    with pytest.raises(ValueError, match="no captions"):
        cider([], [])
    with pytest.raises(ValueError, match=r"without a reference.*: 0"):
        cider_d([["a"], ["a"]], [[], [["a"]]])
