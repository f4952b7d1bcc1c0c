"""The tiles that a ranking walks over: of a shape that suits the device, and fit to be compared.

Scores are compared as `score + noise` and `score - noise`: neither may be NaN, and no sum may overflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xmodal_kedro.retrieval.scores import Tile

BOUNDLESS = torch.finfo(torch.float32).max / 4  # an error that says nothing of a score, and can be added to one


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile that fits the CPU's cache, or that fills a GPU."""
    return (512, 1536) if device.type == "cpu" else (8192, 8192)


def slices(length: int, step: int, start: int = 0) -> Iterator[slice]:
    """[start, length) in steps."""
    for begin in range(start, length, step):
        yield slice(begin, min(begin + step, length))


def finite(tile: Tile, queries: slice, gallery: slice) -> Tile:
    """The tile [B, G], if its scores are finite.

    Raises:
        ValueError: A score is not; its rows of queries and gallery are named.
    """
    if not bool(torch.isfinite(tile.scores.sum())) and not bool((sound := torch.isfinite(tile.scores)).all()):
        row, column = (int(i) for i in (~sound).nonzero()[0])
        raise ValueError(
            f"the score of query row {queries.start + row} and gallery row {gallery.start + column} is not a "
            "finite number."
        )
    return tile


def bounded(tile: Tile, queries: slice, gallery: slice) -> Tile:
    """The tile [B, G], with a finite number in the place of infinite bounds on its error: exact scores decide there.

    Raises:
        ValueError: A bound is NaN.
    """
    if bool(tile.noise.amax() < BOUNDLESS):
        return tile
    if bool(tile.noise.isnan().any()):
        raise ValueError(
            f"the error of the scores of query rows {queries.start} to {queries.stop - 1} and gallery rows "
            f"{gallery.start} to {gallery.stop - 1} is bounded by NaN: a score source must give a number, or infinity."
        )
    return Tile(tile.scores, tile.noise.clamp(max=BOUNDLESS))
