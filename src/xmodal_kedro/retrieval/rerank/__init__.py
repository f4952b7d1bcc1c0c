"""The first candidates of every query in the order of a second stage."""

from xmodal_kedro.retrieval.rerank.slices import check_reranker, reordered, rerank_slices

__all__ = ["check_reranker", "reordered", "rerank_slices"]
