"""Members as one: the registry of fusions, and weights searched on dev."""

from xmodal_kedro.retrieval.fuse import learned, reciprocal_rank, weighted  # registers
from xmodal_kedro.retrieval.fuse.registry import FUSIONS, Dev, Fusion, fusion
from xmodal_kedro.retrieval.fuse.trials import DevPart
from xmodal_kedro.retrieval.fuse.weights import SEARCHES, Gain, WeightSearch, search_weights

__all__ = [
    "FUSIONS",
    "SEARCHES",
    "Dev",
    "DevPart",
    "Fusion",
    "Gain",
    "WeightSearch",
    "fusion",
    "learned",
    "reciprocal_rank",
    "search_weights",
    "weighted",
]
