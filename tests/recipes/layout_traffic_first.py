"""Track 2 from real crops, and three small CLIPs and a small BLIP for the twin of the winner."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.sizes import Size
from tests.recipes.traffic import train_texts, write_track2
from tests.recipes.traffic_weights import save_blip, save_clip, save_xlmr_clip


def lay_out(project: Path, size: Size) -> None:
    """Write `data/01_raw/traffic_first_twin`: train/, val/ and test/ as published, models/ with random weights."""
    root = project / "data/01_raw/traffic_first_twin"
    write_track2(root, size)
    save_clip(root / "models/clip-h", seed=0)
    save_xlmr_clip(root / "models/clip-xlmr", train_texts(root), seed=1)
    save_blip(root / "models/blip", seed=2)
