"""The letterbox, slow and obvious: fractions for the sides, a float64 bicubic filter, a loop over pixels."""

from fractions import Fraction

import numpy as np


def cubic(distance: float) -> float:
    """Keys' cubic kernel with a = -0.5, which vanishes beyond a distance of 2."""
    x = abs(distance)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x < 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def resample(line: np.ndarray, length: int) -> np.ndarray:
    """Filter one axis (the first) to a new length; the kernel widens when it shrinks (antialiasing)."""
    old = len(line)
    step = old / length
    stretch = max(step, 1.0)
    out = np.zeros((length, *line.shape[1:]))
    for target in range(length):
        centre = (target + 0.5) * step
        weights = [cubic((source + 0.5 - centre) / stretch) for source in range(old)]
        for source in range(old):
            out[target] += line[source] * weights[source] / sum(weights)
    return out


def letterbox(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> float64 [size, size, 3], not rounded."""
    height, width = pixels.shape[:2]
    ratio = Fraction(size, max(height, width))
    new_height = max(1, int(height * ratio))
    new_width = max(1, int(width * ratio))
    # Between the two passes the values are rounded and clipped to bytes, as every 8-bit resizer does.
    wide = np.clip(np.round(resample(pixels.swapaxes(0, 1).astype(float), new_width)), 0, 255).swapaxes(0, 1)
    inner = np.clip(resample(wide, new_height), 0, 255)
    out = np.zeros((size, size, 3))
    for y in range(new_height):
        for x in range(new_width):
            out[y + (size - new_height) // 2, x + (size - new_width) // 2] = inner[y, x]
    return out
