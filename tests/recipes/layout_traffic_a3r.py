"""Track 2 from real crops, and a small CLIP for the twin of A3R."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.sizes import Size
from tests.recipes.traffic import write_track2
from tests.recipes.traffic_weights import save_clip


def lay_out(project: Path, size: Size) -> None:
    """Write `data/01_raw/traffic_a3r_twin`: train/, val/ and test/ as published, models/ with random weights."""
    root = project / "data/01_raw/traffic_a3r_twin"
    write_track2(root, size)
    save_clip(root / "models/clip-bigg", seed=0)
