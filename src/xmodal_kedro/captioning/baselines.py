"""Captions that need no model, which every captioner must beat: one sentence for all photos, and the nearest photo's.

Both are chosen by CIDEr-D on train, with document frequencies of train.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm import tqdm

from xmodal_kedro.captioning.judge import JUDGED
from xmodal_kedro.captioning.metrics.cider import ORDER, SCALE, SIGMA, Frequencies, cider_d
from xmodal_kedro.captioning.metrics.scores import Tokens
from xmodal_kedro.captioning.metrics.tokenisers import TOKENISERS
from xmodal_kedro.captioning.references import references_of
from xmodal_kedro.data.image_store import ImageStore

log = logging.getLogger(__name__)

CONSTANT, NEAREST = "constant", "nearest"
SIDE = 16  # of the thumbnails by which photos are compared, in pixels
AT_MOST = 30_000  # train images that are looked at; of more, so many evenly taken: this bounds memory and time
AT_ONCE = 1 << 22  # distances in a block
SLACK = 1e-9  # scores that differ by less are equal


def baseline_captions(captions: pd.DataFrame, images: ImageStore, tokeniser: str) -> dict[str, dict[str, str]]:
    """Caption the images of dev and val that have references without a model.

    Args:
        captions: The caption table.
        images: The packed images; an image that is not among them is left out.
        tokeniser: How CIDEr-D cuts texts: `characters`, `words` or `ptb`.

    Returns:
        `constant` and `nearest`, each image id to its caption. Empty where train has fewer than two images with
        sentences, as in a recipe whose captioners are not trained here: the log says so.
    """
    captions = captions[captions["image_id"].isin(images.ids)]
    train = TrainSentences(_thinned(references_of(captions, "train")), tokeniser)
    wanted = list(dict.fromkeys(chain.from_iterable(references_of(captions, split) for split in JUDGED)))
    if len(train.images) < 2 or not wanted:
        log.info(
            "No captions without a model to compare with: %d images of train and %d of dev and val have sentences",
            *(len(train.images), len(wanted)),
        )
        return {}
    constant = train.best()
    log.info("The constant caption, the best of train for all its images: %s", constant)
    nearest = nearest_rows(
        thumbnails(images.pixels, images.rows(train.images)), thumbnails(images.pixels, images.rows(wanted))
    )
    consensus = {row: train.consensus(row) for row in np.unique(nearest).tolist()}
    return {
        CONSTANT: dict.fromkeys(wanted, constant),
        NEAREST: {image: consensus[row] for image, row in zip(wanted, nearest.tolist(), strict=True)},
    }


class TrainSentences:
    """The sentences of train, cut, and the weights of their n-grams.

    Attributes:
        images: Ids of the images that have a sentence with a token; the others are left out.
        sentences: Of each image, those with a token.
        tokens: Of each sentence.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], tokeniser: str) -> None:
        """Cut all sentences.

        Args:
            references: Image id to its sentences.
            tokeniser: Name of a tokeniser.
        """
        cut = TOKENISERS[tokeniser]
        self.images: list[str] = []
        self.sentences: list[list[str]] = []
        self.tokens: list[list[Tokens]] = []
        for image, texts in references.items():
            kept = [(text, tokens) for text in texts if (tokens := cut(text))]
            if kept:
                self.images.append(image)
                self.sentences.append([text for text, _ in kept])
                self.tokens.append([tokens for _, tokens in kept])
        self.frequencies = Frequencies(self.tokens) if len(self.images) > 1 else None

    def best(self) -> str:
        """The sentence with the highest mean CIDEr-D over all images, exactly; of equal ones the first.

        CIDEr-D clips: of an n-gram that a caption has more often than a reference, the smaller weight counts. Without
        it the mean over the references would be linear in the caption's vector, one product with a vector per length
        of captions, and it can only be higher. So sentences are taken in the order of this bound, and scored, until
        the bound of the next one is below the best score.

        Raises:
            ValueError: Fewer than two images have sentences.
        """
        means = _MeanScores(self._weighed(), self.tokens)
        texts = list(chain(*self.sentences))
        rows = np.array(list({tuple(t): row for row, t in reversed(list(enumerate(chain(*self.tokens))))}.values()))
        bounds = means.bounds(rows)
        best, best_row, tried = -math.inf, -1, 0
        order = np.lexsort((rows, -bounds))
        for place in tqdm(order.tolist(), desc="Best constant caption", unit="sentence", disable=None, leave=False):
            if bounds[place] < best - SLACK:
                break
            row, score = int(rows[place]), means.of(int(rows[place]))
            tried += 1
            if score > best + SLACK or (score > best - SLACK and row < best_row):
                best, best_row = score, row
        log.info(
            "The best of %d distinct train sentences: mean CIDEr-D %.4f over %d images, %d sentences scored in full",
            *(len(rows), best, len(self.images), tried),
        )
        return texts[best_row]

    def consensus(self, image: int) -> str:
        """Of an image's sentences, the one that is closest to its others by CIDEr-D; of equal ones the first.

        Args:
            image: Its place among `images`.
        """
        tokens = self.tokens[image]
        if len(tokens) == 1:
            return self.sentences[image][0]
        others = [tokens[:place] + tokens[place + 1 :] for place in range(len(tokens))]
        scores = cider_d(tokens, others, self._weighed()).each
        return self.sentences[image][int((scores >= scores.max() - SLACK).argmax())]

    def _weighed(self) -> Frequencies:
        if self.frequencies is None:
            raise ValueError(
                f"{len(self.images)} image(s) of train have sentences, and n-grams are weighed by how few images have "
                "them: there must be at least two."
            )
        return self.frequencies


class _MeanScores:
    """Mean CIDEr-D over all images, for sentences of train: their TF-IDF vectors as one sparse matrix."""

    def __init__(self, frequencies: Frequencies, references: Sequence[Sequence[Tokens]]) -> None:
        texts = list(chain(*references))
        column_of = {gram: column for column, gram in enumerate(frequencies.weights)}
        data, columns, ends = array("d"), array("q"), array("q", [0])
        self.norms = np.ones((len(texts), ORDER))
        for row, text in enumerate(texts):
            for place, (weights, norm) in enumerate(frequencies.vectors(text)):
                if norm:  # it is 0 where every image has all n-grams of the text
                    columns.extend(map(column_of.__getitem__, weights))
                    data.extend(weight / norm for weight in weights.values())
                    self.norms[row, place] = norm
            ends.append(len(data))
        shape = (len(texts), len(column_of))
        # Rows of unit length for each n; n-grams of all lengths stand side by side.
        self.vectors = sparse.csr_array((np.array(data), np.array(columns), np.array(ends)), shape=shape)
        self.by_gram = self.vectors.tocsc()
        self.places = np.array([len(gram) for gram in column_of]) - 1
        self.lengths = np.array([len(text) for text in texts])
        # What the cosine of one n with a reference counts for: a mean over n, over an image's references, over images.
        self.shares = np.array([1 / len(of_image) for of_image in references for _ in of_image])
        self.shares *= SCALE / ORDER / len(references)

    def bounds(self, rows: np.ndarray) -> np.ndarray:
        """What the sentences `rows` [n] would score if nothing were clipped [n]."""
        found = np.empty(len(rows))
        for length in np.unique(self.lengths[rows]).tolist():
            chosen = np.flatnonzero(self.lengths[rows] == length)
            found[chosen] = self.vectors[rows[chosen]] @ (self.vectors.T @ self._counts_for(length))
        return found

    def of(self, row: int) -> float:
        """What one sentence scores."""
        grams = slice(*self.vectors.indptr[row : row + 2].tolist())
        columns, ours = self.vectors.indices[grams], self.vectors.data[grams]
        there = self.by_gram[:, columns].tocoo()
        place = self.places[columns][there.col]
        # The smaller of both weights as they are, before they are brought to unit length: in units of our norm.
        ratio = self.norms[there.row, place] / self.norms[row, place]
        clipped = np.minimum(ours[there.col], there.data * ratio) * there.data
        return float(clipped @ self._counts_for(int(self.lengths[row]))[there.row])

    def _counts_for(self, length: int) -> np.ndarray:
        """What a cosine with each reference counts for, for a caption of so many tokens [references]."""
        return self.shares * np.exp(-((length - self.lengths) ** 2) / (2 * SIGMA**2))


def thumbnails(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Photos averaged down.

    Args:
        pixels: uint8 [N, S, S, 3].
        rows: [n] which.

    Returns:
        uint8 [n, SIDE, SIDE, 3]: means over areas, in whole grey levels.
    """
    size = pixels.shape[1]
    edges, pixel = np.arange(SIDE + 1) * size / SIDE, np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = overlap.clip(0.0) * SIDE / size  # [SIDE, S] share of each pixel in each area
    found = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
    for place, row in enumerate(tqdm(rows.tolist(), desc="Thumbnails", unit="image", disable=None, leave=False)):
        found[place] = np.rint(weights @ (weights @ pixels[row].reshape(size, -1)).reshape(SIDE, size, 3))
    return found


def nearest_rows(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The photo of the gallery with the smallest squared distance to each query; of equal ones the lowest row.

    Args:
        gallery: uint8 [N, ...] thumbnails, at least one.
        queries: uint8 [n, ...] of the same shape.

    Returns:
        int64 [n] rows of the gallery.
    """
    # Whole numbers well below 2**53: sums are exact in any order, and equal distances are equal.
    theirs = gallery.reshape(len(gallery), -1).astype(np.float64)
    squares = np.einsum("nd,nd->n", theirs, theirs)
    block = max(1, AT_ONCE // len(theirs))
    found = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), block):
        ours = queries[start : start + block].reshape(-1, theirs.shape[1]).astype(np.float64)
        found[start : start + block] = (squares - 2.0 * (ours @ theirs.T)).argmin(axis=1)
    return found


def _thinned(references: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """All images, or `AT_MOST` of them evenly taken."""
    images = list(references)
    if len(images) > AT_MOST:
        log.info("Captions without a model are chosen by %d of %d train images", AT_MOST, len(images))
        images = [images[number * len(images) // AT_MOST] for number in range(AT_MOST)]
    return {image: references[image] for image in images}
