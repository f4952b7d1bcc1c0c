"""Softmaxes along the other axis: an item that scores high with every query is a hub, and is made to share.

The sums of a column's exponentials take one streaming pass over the queries that are ranked (transductive), or over a
bank of other queries. See Radovanovic, Nanopoulos, Ivanovic: Hubs in space (JMLR 11, 2010) for what hubs are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.rescaled import Rescaled
from xmodal_kedro.retrieval.normalise.statistics import log_sum_exp
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.scores import ScoreSource


@normalisation("dual_softmax_transductive", transductive=True)
def dual_softmax_transductive(source: ScoreSource, setting: Setting) -> ScoreSource:
    """The score times its probability among all queries of the column.

    Cheng, Lin, Wu, Yang, Shen: Improving video-text retrieval by multi-stream corpus alignment and dual softmax loss
    (arXiv 2109.04290). The prior is exp(s_ij / t) / sum over queries n of exp(s_nj / t), and the result s_ij times the
    prior: the form used in testing, before the softmax over the row, which keeps its order. The constant factor that
    some codes put there is left out. One pass.
    """
    columns = log_sum_exp(source, setting.temperature, dim=0) * setting.temperature
    return Rescaled(source, _inverse_temperature(source, setting), column_shift=columns, form="prior")


@normalisation("inverted_softmax_transductive", transductive=True)
def inverted_softmax_transductive(source: ScoreSource, setting: Setting) -> ScoreSource:
    """Probabilities over the gallery, after each column's exponentials were divided by their sum over the queries.

    Smith, Turban, Hamblin, Hammerla: Offline bilingual word vectors, orthogonal transformations and the inverted
    softmax (ICLR 2017, arXiv 1702.03859), with the factor alpha that makes a row sum to 1. Two passes.
    """
    return _inverted(source, source, setting)


@normalisation("inverted_softmax_bank", banked=True)
def inverted_softmax_bank(source: ScoreSource, setting: Setting) -> ScoreSource:
    """The inverted softmax with the column's sum over the bank instead; a query's result depends on no other query.

    One pass over the scores, one over the bank's.
    """
    assert setting.bank is not None
    return _inverted(source, setting.bank, setting)


@normalisation("qb_norm", banked=True)
def qb_norm(source: ScoreSource, setting: Setting) -> ScoreSource:
    """The dynamic inverted softmax: only queries whose first item is also the first of a query of the bank change.

    Bogolin, Croitoru, Jin, Liu, Albanie: Cross modal retrieval with querybank normalisation (CVPR 2022, arXiv
    2112.12777), with an activation set of first places (k = 1). The published ratio
    exp(s / t) / sum over the bank is given by its logarithm times t: the order within a row is the same, and rows that
    change stay on the scale of those that do not, so that members can be mixed. A query's result depends on no other
    query. One pass over the scores, two over the bank's.
    """
    assert setting.bank is not None
    columns = log_sum_exp(setting.bank, setting.temperature, dim=0) * setting.temperature
    activated = torch.zeros(source.shape[1], dtype=torch.bool, device=source.device)
    activated[_first(setting.bank)] = True
    ones = torch.ones(source.shape[0], dtype=torch.float64, device=source.device)
    return Rescaled(source, ones, column_shift=columns, shifted=activated[_first(source)])


def _inverted(source: ScoreSource, bank: ScoreSource, setting: Setting) -> ScoreSource:
    columns = log_sum_exp(bank, setting.temperature, dim=0)
    rows = log_sum_exp(source, setting.temperature, dim=1, shift=-columns)
    scale = _inverse_temperature(source, setting)
    shifts = rows * setting.temperature, columns * setting.temperature
    return Rescaled(source, scale, *shifts, form="exponential")


def _inverse_temperature(source: ScoreSource, setting: Setting) -> Tensor:
    return torch.full((source.shape[0],), 1.0 / setting.temperature, dtype=torch.float64, device=source.device)


def _first(source: ScoreSource) -> Tensor:
    """The exact first item of every query, [N]; of equal ones the first in the gallery."""
    return torch.from_numpy(rank(source, None, 1).top_rows[:, 0]).to(source.device)
