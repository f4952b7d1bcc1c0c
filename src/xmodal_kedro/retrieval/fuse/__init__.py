"""Members as one: weights searched on dev, and other ways of fusion."""

from xmodal_kedro.retrieval.fuse.trials import DevPart
from xmodal_kedro.retrieval.fuse.weights import WeightSearch, search_weights

__all__ = ["DevPart", "WeightSearch", "search_weights"]
