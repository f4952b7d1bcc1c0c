"""Search of large galleries: the exact best k, and faiss behind the same interface, saved and memory-mapped."""

from xmodal_kedro.retrieval.search.approximate import FaissIndex
from xmodal_kedro.retrieval.search.build import Recall, build_index, measure_recall, open_index, recall_table
from xmodal_kedro.retrieval.search.exact import ExactIndex
from xmodal_kedro.retrieval.search.index import Found, Index, check_made_of, origin_of

__all__ = [
    "ExactIndex",
    "FaissIndex",
    "Found",
    "Index",
    "Recall",
    "build_index",
    "check_made_of",
    "measure_recall",
    "open_index",
    "origin_of",
    "recall_table",
]
