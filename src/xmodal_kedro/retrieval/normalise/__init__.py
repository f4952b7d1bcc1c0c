"""Normalisations of scores: one file each, registered by name, streaming."""

from xmodal_kedro.retrieval.normalise import rows  # registers
from xmodal_kedro.retrieval.normalise.registry import NORMALISATIONS, Setting, normalisation, normalised
from xmodal_kedro.retrieval.normalise.statistics import RowStatistics, row_statistics

__all__ = [
    "NORMALISATIONS",
    "RowStatistics",
    "Setting",
    "normalisation",
    "normalised",
    "row_statistics",
    "rows",
]
