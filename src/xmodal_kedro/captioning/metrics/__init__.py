"""Metrics of captions in pure Python: BLEU, ROUGE-L, CIDEr, CLIPScore, and METEOR where Java is there."""

from xmodal_kedro.captioning.metric_names import parse
from xmodal_kedro.captioning.metrics.bleu import BleuScores, bleu
from xmodal_kedro.captioning.metrics.cider import Frequencies, cider, cider_d
from xmodal_kedro.captioning.metrics.clipscore import clip_score, ref_clip_score
from xmodal_kedro.captioning.metrics.evaluate import MetricUnavailableError, evaluate, unavailable
from xmodal_kedro.captioning.metrics.meteor import MeteorError, meteor
from xmodal_kedro.captioning.metrics.rouge import rouge_l
from xmodal_kedro.captioning.metrics.scores import Scores
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS

__all__ = [
    "TOKENISERS",
    "BleuScores",
    "Frequencies",
    "MeteorError",
    "MetricUnavailableError",
    "Scores",
    "bleu",
    "cider",
    "cider_d",
    "clip_score",
    "evaluate",
    "meteor",
    "parse",
    "ref_clip_score",
    "rouge_l",
    "unavailable",
]
