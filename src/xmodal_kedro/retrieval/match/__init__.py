"""One-to-one matching of queries and gallery items."""

from xmodal_kedro.retrieval.match.assignment import Match, assign, best_of_each
from xmodal_kedro.retrieval.match.certificate import Certificate

__all__ = ["Certificate", "Match", "assign", "best_of_each"]
