"""Normalisations that look at one query at a time: they bring members to one scale and keep every order.

A row holds the scores of one query. Each normalisation needs at most one streaming pass for the statistics of the rows.
None of them changes the order within a row; they matter where members are mixed. A query's result does not depend on
other queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.rescaled import Rescaled
from xmodal_kedro.retrieval.normalise.statistics import extremes, log_sum_exp, moments
from xmodal_kedro.retrieval.scores import ScoreSource

NO_SPREAD = 2.0**-22  # a row whose scores differ by less, relative to their size, says nothing: it is fp32 rounding


@normalisation("none")
def none(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Scores as they are."""
    return source


@normalisation("row_l2")
def row_l2(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Divided by the Euclidean norm of the row: the first place of CVPR 2023 track 2 mixed its members so."""
    norm = moments(source).l2
    return Rescaled(source, _inverse(norm, torch.zeros_like(norm)))


@normalisation("zscore")
def zscore(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Mean 0 and standard deviation (over the whole gallery, without correction) 1; a constant row becomes 0."""
    of = moments(source)
    return Rescaled(source, _inverse(of.std, of.l2 / source.shape[1] ** 0.5), of.mean)


@normalisation("minmax")
def minmax(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Lowest score 0, highest 1; a constant row becomes 0.

    Both ends are found in fp32, so that an exact value may leave the interval by a rounding of the scores over their
    spread. It stays there: values cut to 0 and 1 would tie where scores do not.
    """
    of = extremes(source)
    return Rescaled(source, _inverse(of.high - of.low, torch.maximum(of.high.abs(), of.low.abs())), of.low)


@normalisation("softmax")
def softmax(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Probabilities over the gallery: exp(score / temperature), divided by its sum over the row."""
    total = log_sum_exp(source, setting.temperature)
    scale = torch.full_like(total, 1.0 / setting.temperature)
    return Rescaled(source, scale, total * setting.temperature, form="exponential")


def _inverse(spread: Tensor, size: Tensor) -> Tensor:
    """1 / spread [N]; 0 where the spread is nothing but rounding of numbers of this size."""
    return torch.where(spread > NO_SPREAD * size, 1.0 / spread, torch.zeros_like(spread))
