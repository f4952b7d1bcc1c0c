"""Where scores come from: embeddings, matrices, mixtures and second stages, all behind one tiled interface."""

from xmodal_kedro.retrieval.scores.embedding import EmbeddingScores
from xmodal_kedro.retrieval.scores.linear import LinearForm, linear_form
from xmodal_kedro.retrieval.scores.matrix import MatrixScores
from xmodal_kedro.retrieval.scores.mixed import WeightedScores
from xmodal_kedro.retrieval.scores.reordered import Reordered, second_order
from xmodal_kedro.retrieval.scores.source import (
    FP32_ROUNDING,
    QuickPairs,
    ScoreSource,
    Tile,
    Transposed,
    flipped,
    quick_pairs,
    rounding,
)

__all__ = [
    "FP32_ROUNDING",
    "EmbeddingScores",
    "LinearForm",
    "MatrixScores",
    "QuickPairs",
    "Reordered",
    "ScoreSource",
    "Tile",
    "Transposed",
    "WeightedScores",
    "flipped",
    "linear_form",
    "quick_pairs",
    "rounding",
    "second_order",
]
