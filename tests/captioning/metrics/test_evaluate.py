"""Captions by image id: metrics by name, scores in the order of the captions, and errors that name what is wrong."""

import numpy as np
import pytest

from xmodal_kedro.captioning.metrics import (
    MetricUnavailableError,
    bleu,
    cider_d,
    evaluate,
    rouge_l,
    unavailable,
)
from xmodal_kedro.captioning.metrics import tokenisers as tokenisers_module

CAPTIONS = {"b": "A dog runs.", "a": "two cats", "c": ""}
REFERENCES = {
    "a": ["two cats sleep", "cats"],
    "b": ["a dog runs fast", "the dog is running!"],
    "c": ["a bird"],
}


def test_scores_follow_the_order_of_captions_and_names():
    names = ["rouge_l_ptb", "bleu_2_ptb", "cider_d_characters", "cider_d_ptb"]
    found = evaluate(CAPTIONS, REFERENCES, names)
    assert list(found) == names
    captions = [["a", "dog", "runs"], ["two", "cats"], []]
    references = [
        [["a", "dog", "runs", "fast"], ["the", "dog", "is", "running"]],
        [["two", "cats", "sleep"], ["cats"]],
        [["a", "bird"]],
    ]
    assert found["rouge_l_ptb"].each.tolist() == rouge_l(captions, references).each.tolist()
    assert found["bleu_2_ptb"].value == bleu(captions, references)[1].value
    assert found["cider_d_ptb"].each.tolist() == cider_d(captions, references).each.tolist()
    cut = [[list("".join(text)) for text in texts] for texts in references]
    by_characters = cider_d([list("".join(text)) for text in captions], cut)
    assert found["cider_d_characters"].each == pytest.approx(by_characters.each)
    assert found["cider_d_characters"].value != pytest.approx(found["cider_d_ptb"].value)


def test_interval_holds_the_value():
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "runs", "sits", "on", "grass", "red", "ball"]
    captions = {str(i): " ".join(rng.choice(words, size=6)) for i in range(40)}
    references = {i: [" ".join(rng.choice(words, size=6)) for _ in range(3)] for i in captions}
    names = ["bleu_1_ptb", "bleu_2_ptb", "rouge_l_ptb", "cider_d_ptb", "cider_ptb"]
    for scores in evaluate(captions, references, names).values():
        low, high = scores.interval(resamples=200)
        assert 0 < low < scores.value < high < 10
        assert len(scores.each) == 40


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (CAPTIONS | {"d": "x", "e": "y"}, REFERENCES, "no references: 'd', 'e'"),
        (CAPTIONS, REFERENCES | {"d": ["x"]}, "no caption: 'd'"),
        (CAPTIONS, REFERENCES | {"b": []}, "without a reference.*: 'b'"),
        (CAPTIONS, REFERENCES | {"c": ["...", ""]}, "without a reference.*: 'c'"),
        (CAPTIONS, REFERENCES | {"a": "two cats"}, "single texts for 'a'"),
        ({}, {}, "no captions"),
        ({str(i): "x" for i in range(8)}, {}, "'0', '1', '2', '3', '4' and 3 more"),
    ],
)
def test_ids_and_references_that_do_not_fit_are_named(captions, references, message):
    with pytest.raises(ValueError, match=message):
        evaluate(captions, references, ["cider_d_ptb"])


def test_names_are_checked_before_anything_is_computed():
    with pytest.raises(ValueError, match="no caption metric 'cider'"):
        evaluate({}, {}, ["bleu_1_ptb", "cider"])
    with pytest.raises(ValueError, match=r"clipscore compare.* clip_score"):
        evaluate({}, {}, ["bleu_1_ptb", "clipscore"])


def test_what_this_installation_lacks_is_said(monkeypatch):
    monkeypatch.setattr(tokenisers_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert unavailable("bleu_4_ptb") is None
    assert "xmodal-kedro[captioning]" in unavailable("rouge_l_words")
    assert "Java" in unavailable("meteor_ptb")
    with pytest.raises(MetricUnavailableError, match=r"(?s)bleu_1_words: .*captioning.*meteor_ptb: .*Java"):
        evaluate(CAPTIONS, REFERENCES, ["bleu_1_words", "bleu_1_ptb", "meteor_ptb"])
