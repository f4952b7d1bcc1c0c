"""Scores equal published ones to four digits, and coco-caption's own programs where they are installed."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SHARED
from tests.reference import captions as reference
from xmodal_kedro.captioning.metrics import TOKENISERS, bleu, cider_d, evaluate, rouge_l

FIXTURE = SHARED / "metric_fixtures" / "published_scores.json"
OURS = {"Bleu_1": "bleu_1_ptb", "Bleu_2": "bleu_2_ptb", "Bleu_3": "bleu_3_ptb", "Bleu_4": "bleu_4_ptb"}
OURS |= {"ROUGE_L": "rouge_l_ptb", "CIDEr": "cider_d_ptb"}


@pytest.mark.skipif(not FIXTURE.is_file(), reason=f"{FIXTURE} is not here")
@pytest.mark.parametrize("case", ["clipscore_good", "clipscore_bad", "nlg_eval"])
def test_published(case):
    facts = json.loads(FIXTURE.read_text())[case]
    assert facts["reproduced_here"] == ["Bleu_1-4", "ROUGE_L", "CIDEr"]
    found = evaluate(facts["hypotheses"], facts["references"], list(OURS.values()))
    for key, name in OURS.items():
        assert found[name].value == pytest.approx(facts["published"][key], abs=5.1e-5), key


def as_coco(captions, references):
    """The two dictionaries that coco-caption takes: image to texts with blanks between tokens."""
    return (
        {image: [" ".join(text) for text in texts] for image, texts in enumerate(references)},
        {image: [" ".join(text)] for image, text in enumerate(captions)},
    )


@pytest.fixture(scope="module")
def flickr():
    """Chinese characters of 150 photos: the first sentence is the caption, the others are the references."""
    if not (SHARED / "flickr8k" / "val.parquet").is_file():
        pytest.skip("../shared/data/flickr8k is not here")
    table = pd.read_parquet(SHARED / "flickr8k" / "val.parquet", columns=["captions_zh"])[:150]
    cut = [[TOKENISERS["characters"](text) for text in texts] for texts in table["captions_zh"]]
    return [texts[0] for texts in cut], [texts[1:] for texts in cut]


@pytest.mark.parametrize("data", ["random", "flickr"])
def test_equals_coco_caption(data, request):
    bleu_of = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if data == "flickr":
        captions, references = request.getfixturevalue("flickr")
    else:
        captions, references = reference.random_captions(np.random.default_rng(9), 60)
    truth, said = as_coco(captions, references)
    values, each = bleu_of.Bleu(4).compute_score(truth, said, verbose=0)
    for order, scores in enumerate(bleu(captions, references)):
        assert scores.value == pytest.approx(values[order], abs=1e-12)
        assert scores.each == pytest.approx(each[order], abs=1e-12)
    for theirs, ours in ((Rouge(), rouge_l), (Cider(), cider_d)):
        value, each = theirs.compute_score(truth, said)
        scores = ours(captions, references)
        assert scores.value == pytest.approx(value, abs=1e-10)
        assert scores.each == pytest.approx(each, abs=1e-10)
