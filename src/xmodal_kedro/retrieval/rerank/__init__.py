"""The first candidates of every query in the order of a second stage; importing it registers all of them."""

from xmodal_kedro.retrieval.rerank import adaption, itm, k_reciprocal, query_expansion  # registers these
from xmodal_kedro.retrieval.rerank.slices import check_reranker, reordered, rerank_slices
from xmodal_kedro.retrieval.rerank.stage import SECOND_STAGES, Answer, Asked, Candidates, Direction, second_stage

__all__ = [
    "SECOND_STAGES",
    "Answer",
    "Asked",
    "Candidates",
    "Direction",
    "adaption",
    "check_reranker",
    "itm",
    "k_reciprocal",
    "query_expansion",
    "reordered",
    "rerank_slices",
    "second_stage",
]
