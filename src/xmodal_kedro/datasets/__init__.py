"""Kedro datasets: atomic, versioned, previewable."""
