"""CLIPScore and RefCLIPScore from embeddings of any member.

Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: A Reference-free Evaluation Metric for Image Captioning, EMNLP 2021.
Scores of different members do not compare, and the published ones are of CLIP ViT-B/32 with "A photo depicts " before
every text: whoever embeds the texts decides on that.
"""

from __future__ import annotations

import numpy as np

from xmodal_kedro.captioning.metrics.scores import Scores, named

WEIGHT = 2.5


def clip_score(images: np.ndarray, captions: np.ndarray) -> Scores:
    """CLIPScore: 2.5 * max(cosine of image and caption, 0).

    Args:
        images: [n, D] embeddings, of any length.
        captions: [n, D] of the caption of each image.

    Raises:
        ValueError: The shapes do not fit, there are no rows, or a row is zero or not finite (it is named).
    """
    return Scores.mean_of(_image_part(images, captions))


def ref_clip_score(images: np.ndarray, captions: np.ndarray, references: np.ndarray, owners: np.ndarray) -> Scores:
    """RefCLIPScore: the harmonic mean of CLIPScore and max(cosine of caption and closest reference, 0).

    Args:
        images: [n, D] embeddings, of any length.
        captions: [n, D] of the caption of each image.
        references: [m, D] of all references.
        owners: [m] int, the row in `images` that a reference belongs to.

    Raises:
        ValueError: As `clip_score`; or owners do not fit the rows, or an image has no reference (it is named).
    """
    by_image = _image_part(images, captions)
    owners = np.asarray(owners)
    texts = _unit(references, "references")
    if owners.shape != (len(texts),) or not np.issubdtype(owners.dtype, np.integer):
        raise ValueError(
            f"owners must be one whole number for each of the {len(texts)} references; they are {owners.dtype} "
            f"{owners.shape}."
        )
    if owners.min() < 0 or owners.max() >= len(by_image):
        raise ValueError(
            f"owners must be rows of the {len(by_image)} images; they reach {owners.min()}..{owners.max()}."
        )
    if missing := np.setdiff1d(np.arange(len(by_image)), owners).tolist():
        raise ValueError(f"RefCLIPScore needs a reference for every image; none for the rows {named(missing)}.")
    ours = _unit(captions, "captions")
    if ours.shape[1] != texts.shape[1]:
        raise ValueError(f"captions have {ours.shape[1]} dimensions and references {texts.shape[1]}.")
    closest = np.zeros(len(ours))  # max(cosine, 0)
    np.maximum.at(closest, owners, np.einsum("md,md->m", ours[owners], texts))
    both = by_image + closest
    return Scores.mean_of(np.divide(2 * by_image * closest, both, out=np.zeros_like(both), where=both > 0))


def _image_part(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    ours, theirs = _unit(captions, "captions"), _unit(images, "images")
    if ours.shape != theirs.shape:
        raise ValueError(f"images {theirs.shape} and captions {ours.shape} must have the same shape, a row per image.")
    return WEIGHT * np.maximum(np.einsum("nd,nd->n", theirs, ours), 0.0)


def _unit(matrix: np.ndarray, what: str) -> np.ndarray:
    """The rows [n, D] in fp64 at length 1."""
    rows = np.asarray(matrix, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"{what} must be a matrix with at least one row; its shape is {rows.shape}.")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~((norms[:, 0] > 0) & np.isfinite(norms[:, 0]))).tolist()
    if wrong:
        raise ValueError(f"{what} have rows that are zero or not finite, and no direction: {named(wrong)}.")
    return rows / norms
