"""Normalisations of scores: one file per family, registered by name, streaming."""

from xmodal_kedro.retrieval.normalise import csls, ranked, rows, sinkhorn, softmaxes  # registers
from xmodal_kedro.retrieval.normalise.registry import NORMALISATIONS, Setting, normalisation, normalised
from xmodal_kedro.retrieval.normalise.rescaled import Rescaled
from xmodal_kedro.retrieval.normalise.statistics import extremes, log_sum_exp, moments

__all__ = [
    "NORMALISATIONS",
    "Rescaled",
    "Setting",
    "csls",
    "extremes",
    "log_sum_exp",
    "moments",
    "normalisation",
    "normalised",
    "ranked",
    "rows",
    "sinkhorn",
    "softmaxes",
]
