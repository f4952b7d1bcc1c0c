"""Adaption re-ranking of A3R (arXiv 2306.06691): the query moves among its best images, which are then asked about it.

The paper leaves some cases open; what is done here:

- The publication takes minus the first principal component, whose sign is an accident of the solver. Here the adapted
  query points to the side on which the weighted anchors lie.
- Anchors with equal cosines weigh the same (min-max scaling would divide zero by zero); if the weighted anchors do not
  vary over the dimensions, there is no component, and the text stays the query.
- An image belongs to its own neighbourhood, so none is empty: without others, the image speaks for itself. Fewer
  candidates than `anchors` or `neighbours` are simply all taken.
- Neighbours weigh as much as they are similar, and nothing where their cosine is negative.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kedro.retrieval.embed import embed_images
from xmodal_kedro.retrieval.rerank.stage import Answer, Asked, Direction, second_stage

SAME = 1e-7  # cosines of fp32 vectors that are closer say nothing


@second_stage("adaption")
def ask_adaption(asked: Asked) -> dict[Direction, Answer]:
    """Adaption scores from the member's embeddings and, where asked, those of the mirrored candidates."""
    config, part, candidates = asked.config, asked.part, asked.candidates["t2i"].rows
    texts, vectors = asked.vectors("t2i")
    wanted, place = np.unique(candidates, return_inverse=True)
    place = place.reshape(candidates.shape)
    mirrored: np.ndarray | None = None
    if config.mirrored:
        assert asked.checkpoint is not None, "config.looks"
        assert asked.images is not None, "config.looks"
        rows, turned = asked.images.rows(part.image_ids)[wanted], asked.images.pixels[:, :, ::-1]
        backbone = asked.checkpoint.backbone
        mirrored = embed_images(backbone, turned, rows, config.batch_size, asked.device, config.precision)
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(texts), config.batch_size):
        batch = slice(start, start + config.batch_size)
        scores[batch] = adaption_scores(
            torch.from_numpy(texts[batch]).to(asked.device),
            torch.from_numpy(vectors[candidates[batch]]).to(asked.device),
            None if mirrored is None else torch.from_numpy(mirrored[place[batch]]).to(asked.device),
            config.anchors,
            config.neighbours,
        ).cpu()
    return {"t2i": Answer(scores, scores.astype(np.float64))}


def adaption_scores(
    texts: Tensor,  # [B, D]
    images: Tensor,  # [B, K, D]
    mirrored: Tensor | None = None,  # [B, K, D]
    anchors: int = 10,
    neighbours: int = 10,
) -> Tensor:  # [B, K] fp32: identical images tie, whatever the last bits of fp64 say
    """Scores of the candidates of each text.

    With q the adapted query and m(i) the weighted mean of the k-reciprocal neighbours of image i among the candidates,
    the score of i is cos(q, i) - (1 - cos(q, m(i))).

    Args:
        texts: Of length 1.
        images: Candidates of each text, best of the first stage first, of length 1.
        mirrored: The same images, mirrored; cosines with an image are then the best over both views.
        anchors: How many of the first images the query moves towards.
        neighbours: k of the neighbourhoods, the image itself not counted.
    """
    texts, images = texts.double(), images.double()
    views = [images] if mirrored is None else [images, mirrored.double()]
    query = adapted_queries(texts, images[:, :anchors])  # [B, D]
    cosines = torch.stack([(view @ query[:, :, None])[..., 0] for view in views]).amax(0)  # [B, K]
    alike = torch.stack([left @ right.transpose(1, 2) for left in views for right in views]).amax(0)  # [B, K, K]
    weights = alike.clamp(min=0.0) * reciprocal(alike, neighbours)
    weights.diagonal(dim1=1, dim2=2).fill_(1.0)
    around = F.normalize(weights @ images, dim=-1)  # the length of a mean does not matter to a cosine
    return (cosines - (1.0 - (around @ query[:, :, None])[..., 0])).float()


def adapted_queries(texts: Tensor, anchors: Tensor) -> Tensor:
    """Move queries into the space of their images.

    The adapted query is the first principal component of the anchors [D, A], each scaled by its min-max normalised
    cosine with the text: dimensions are the samples, so the component is a mixture of the (centred) images.

    Args:
        texts: [B, D] fp64, of length 1.
        anchors: [B, A, D] fp64.

    Returns:
        [B, D] of length 1.
    """
    cosines = (anchors @ texts[:, :, None])[..., 0]  # [B, A]
    low, high = cosines.aminmax(dim=1, keepdim=True)
    spread = high - low
    shares = torch.where(spread > SAME, (cosines - low) / spread.clamp(min=SAME), 1.0)
    weighted = shares[:, :, None] * anchors
    centred = weighted - weighted.mean(dim=2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))  # ascending
    component = (centred.transpose(1, 2) @ vectors[:, :, -1:])[..., 0]  # [B, D]
    side = (component * weighted.sum(1)).sum(1, keepdim=True)
    component = F.normalize(torch.where(side < 0, -component, component), dim=-1)
    return torch.where(values[:, -1:] > SAME**2, component, texts)


def reciprocal(alike: Tensor, neighbours: int) -> Tensor:
    """Which images count each other among their nearest.

    Args:
        alike: [B, K, K] similarities; of equal ones the earlier image is nearer.
        neighbours: How many of the other images are the nearest.

    Returns:
        [B, K, K] bool, symmetric; the diagonal is false.
    """
    others = alike.clone()
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    nearest = others.argsort(dim=2, descending=True, stable=True)[:, :, : min(neighbours, alike.shape[1] - 1)]
    near = torch.zeros_like(alike, dtype=torch.bool).scatter_(2, nearest, True)
    return near & near.transpose(1, 2)
