"""CSLS: cross-domain similarity local scaling takes from a score how near the two sides are to everybody.

Conneau, Lample, Ranzato, Denoyer, Jegou: Word translation without parallel data (ICLR 2018, arXiv 1710.04087), 2.3:
CSLS(x, y) = 2 cos(x, y) - r_T(x) - r_S(y). r_T(x) is the mean score of the query with its nearest gallery items, r_S(y)
that of the item with its nearest queries. Both are means of exact scores. r_T shifts a whole row and changes no order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xmodal_kedro.retrieval.normalise.registry import Setting, normalisation
from xmodal_kedro.retrieval.normalise.rescaled import Rescaled
from xmodal_kedro.retrieval.rank import Ranking, rank, rank_both
from xmodal_kedro.retrieval.scores import ScoreSource, Transposed


@normalisation("csls_transductive", transductive=True)
def csls_transductive(source: ScoreSource, setting: Setting) -> ScoreSource:
    """r_S from the queries that are ranked themselves, as published; one pass over the scores."""
    forward, backward = rank_both(source, None, setting.neighbours)
    return _csls(source, forward, backward)


@normalisation("csls_bank", banked=True)
def csls_bank(source: ScoreSource, setting: Setting) -> ScoreSource:
    """r_S from the bank; a query's result depends on no other query. One pass over the scores, one over the bank's."""
    assert setting.bank is not None
    backward = rank(Transposed(setting.bank), None, setting.neighbours)
    return _csls(source, rank(source, None, setting.neighbours), backward)


def _csls(source: ScoreSource, forward: Ranking, backward: Ranking) -> ScoreSource:
    rows, columns = (_nearness(found, source.device) for found in (forward, backward))
    return Rescaled(source, torch.full_like(rows, 2.0), rows / 2, columns / 2)


def _nearness(found: Ranking, device: torch.device) -> Tensor:
    """Mean of the top scores, fp64: fewer than asked for, where there are not as many."""
    return torch.from_numpy(found.top_scores.astype(np.float64).mean(1)).to(device)
