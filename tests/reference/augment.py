"""Image operations one pixel at a time, from their definitions: Pillow's for colour, an affine map's for geometry."""

import math

import numpy as np

FILL = 128.0

Image = np.ndarray  # [H, W, 3], float64 in 0..255


def clipped(values: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(values, 0.0), 255.0)


def grey(image: Image) -> np.ndarray:
    """ITU-R 601 luma, [H, W]."""
    return (image[:, :, 0] * 299 + image[:, :, 1] * 587 + image[:, :, 2] * 114) / 1000


def brightness(image: Image, factor: float) -> Image:
    return clipped(image * factor)


def contrast(image: Image, factor: float) -> Image:
    return clipped(grey(image).mean() * (1 - factor) + image * factor)


def saturation(image: Image, factor: float) -> Image:
    return clipped(grey(image)[:, :, None] * (1 - factor) + image * factor)


def sharpness(image: Image, factor: float) -> Image:
    out = image.copy()
    for row in range(1, image.shape[0] - 1):
        for column in range(1, image.shape[1] - 1):
            total = 5 * image[row, column]
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if (down, right) != (0, 0):
                        total = total + image[row + down, column + right]
            out[row, column] = total / 13 * (1 - factor) + image[row, column] * factor
    return clipped(out)


def auto_contrast(image: Image) -> Image:
    out = image.copy()
    for channel in range(3):
        low, high = image[:, :, channel].min(), image[:, :, channel].max()
        if high > low:
            out[:, :, channel] = (image[:, :, channel] - low) / (high - low) * 255
    return out


def equalize(image: Image) -> Image:
    """Grey levels are counted, so pixels are rounded to them first (halves to even)."""
    out = np.round(image)
    for channel in range(3):
        levels = out[:, :, channel].astype(int).ravel().tolist()
        counts = [levels.count(level) for level in range(256)]
        step = (len(levels) - counts[max(levels)]) // 255
        if step == 0:
            continue
        table = [min(255, (step // 2 + sum(counts[:level])) // step) for level in range(256)]
        out[:, :, channel] = np.reshape([table[level] for level in levels], image.shape[:2])
    return out


def affine(image: Image, matrix: list[list[float]]) -> Image:
    """Move pixel (x, y) to `matrix` @ (x, y, 1); between pixels linearly, outside lies FILL."""
    height, width = image.shape[:2]
    inverse = np.linalg.inv(np.array([*matrix, [0, 0, 1]], float))
    out = np.empty_like(image)

    def pixel(x: int, y: int) -> np.ndarray:
        return image[y, x] if 0 <= x < width and 0 <= y < height else np.full(3, FILL)

    for row in range(height):
        for column in range(width):
            x, y, _ = np.round(inverse @ (column, row, 1), 9)
            left, above = math.floor(x), math.floor(y)
            right_share, below_share = x - left, y - above
            out[row, column] = (
                pixel(left, above) * (1 - right_share) * (1 - below_share)
                + pixel(left + 1, above) * right_share * (1 - below_share)
                + pixel(left, above + 1) * (1 - right_share) * below_share
                + pixel(left + 1, above + 1) * right_share * below_share
            )
    return out


def rand_augment_op(image: Image, name: str, magnitude: int, sign: int) -> Image:
    """An operation of BLIP's list, at a magnitude of 0 to 10, to one side (+1 or -1)."""
    factor = magnitude / 10 * 1.8 + 0.1
    shear = sign * magnitude / 10 * 0.3
    shift = sign * magnitude / 10 * 10
    operations = {
        "Identity": lambda: image,
        "AutoContrast": lambda: auto_contrast(image),
        "Brightness": lambda: brightness(image, factor),
        "Sharpness": lambda: sharpness(image, factor),
        "Equalize": lambda: equalize(image),
        "ShearX": lambda: affine(image, [[1, shear, 0], [0, 1, 0]]),
        "ShearY": lambda: affine(image, [[1, 0, 0], [shear, 1, 0]]),
        "TranslateX": lambda: affine(image, [[1, 0, -shift], [0, 1, 0]]),
        "TranslateY": lambda: affine(image, [[1, 0, 0], [0, 1, -shift]]),
    }
    return operations[name]()
