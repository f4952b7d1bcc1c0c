"""Node of index: a member's image embeddings to a search index, with what it finds measured against exact search."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.index import IndexConfig

if TYPE_CHECKING:
    from pandas import DataFrame

    from xmodal_kedro.retrieval.embeddings import Embeddings
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Embeddings = Any

log = logging.getLogger(__name__)


def index_member(
    image_embeddings: Embeddings, text_embeddings: Embeddings, index: IndexConfig
) -> tuple[Path, DataFrame]:
    """Index the images; returns a staged directory, and the recall of the texts' best images."""
    from xmodal_kedro.datasets.directory import staging
    from xmodal_kedro.retrieval.embeddings import check_made_by
    from xmodal_kedro.retrieval.search import build_index, recall_table

    check_made_by(text_embeddings, weights=image_embeddings.meta["fingerprints"]["weights"])
    built = build_index(image_embeddings, index)
    directory = staging(f"{image_embeddings.meta['member']}-index")
    built.save(directory)
    log.info("%s: indexed %d images (%s)", image_embeddings.meta["member"], len(built), index.kind)
    return directory, recall_table(built, image_embeddings, text_embeddings, index)
