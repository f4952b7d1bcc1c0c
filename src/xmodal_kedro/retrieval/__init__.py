"""Scores, rankings, metrics, fusion and matching."""
