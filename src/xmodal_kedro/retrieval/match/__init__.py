"""One-to-one matching of queries and gallery items."""

from xmodal_kedro.retrieval.match.assignment import Match, MatchTooLargeError, assign, best_of_each

__all__ = ["Match", "MatchTooLargeError", "assign", "best_of_each"]
