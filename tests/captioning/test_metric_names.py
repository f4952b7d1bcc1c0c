"""Names say what is measured and how text is cut; others are refused with the list of those that are."""

import pytest

from xmodal_kedro.captioning.metric_names import BY_TOKENS, TOKENISERS, parse
from xmodal_kedro.captioning.metrics.evaluate import METRICS
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS as CUTS


@pytest.mark.parametrize("metric", BY_TOKENS)
@pytest.mark.parametrize("tokeniser", TOKENISERS)
def test_metric_and_tokeniser(metric, tokeniser):
    assert parse(f"{metric}_{tokeniser}") == (metric, tokeniser)


@pytest.mark.parametrize("name", ["clipscore", "ref_clipscore"])
def test_embeddings_need_no_tokeniser(name):
    assert parse(name) == (name, "")


@pytest.mark.parametrize(
    "name", ["cider_d", "bleu_4", "bleu_5_ptb", "cider_d_", "_ptb", "ptb", "", "clipscore_ptb", "CIDEr_ptb", "d_ptb"]
)
def test_others_are_refused(name):
    with pytest.raises(ValueError, match=f"no caption metric '{name}'.*cider_d_characters.*ref_clipscore"):
        parse(name)


def test_every_name_can_be_computed():
    assert set(METRICS) == set(BY_TOKENS)
    assert set(CUTS) == set(TOKENISERS)
