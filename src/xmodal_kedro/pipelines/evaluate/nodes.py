"""Nodes of evaluate: a member's checkpoint to embeddings of all that is ranked, and to metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.member import MemberConfig

if TYPE_CHECKING:
    from pandas import DataFrame

    from xmodal_kedro.data.image_store import ImageStore
    from xmodal_kedro.retrieval.embeddings import Embeddings
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = ImageStore = Embeddings = Any

log = logging.getLogger(__name__)

RANKED = ["dev", "val", "test"]


def embed_member(
    checkpoint: Path, captions: DataFrame, images: ImageStore, member: MemberConfig, runtime: RuntimeConfig
) -> tuple[Path, Path]:
    """Encode every image and text of dev, val and test; returns two staged directories of embeddings."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.datasets.directory import staging
    from xmodal_kedro.models.checkpoint import read_checkpoint
    from xmodal_kedro.retrieval.embed import embed_images, embed_texts
    from xmodal_kedro.retrieval.embeddings import Embeddings
    from xmodal_kedro.training.device import pick_device

    device = pick_device(runtime)
    loaded = read_checkpoint(checkpoint, device)
    ranked = captions[captions["split"].isin(RANKED)]
    image_ids = ranked["image_id"].dropna().drop_duplicates().tolist()
    texts = ranked.dropna(subset=["text_id"]).drop_duplicates("text_id")
    encode = {"batch_size": member.embed.batch_size, "device": device, "precision": member.embed.precision}
    matrices = {
        "image": (image_ids, embed_images(loaded.backbone, images.pixels, images.rows(image_ids), **encode)),
        "text": (texts["text_id"].tolist(), embed_texts(loaded.backbone, texts["text"].tolist(), **encode)),
    }
    made_by = {
        "weights": loaded.fingerprints["weights"],
        "transform": loaded.fingerprints["transform"],
        "captions": table_fingerprint(captions),
        "images": images.fingerprint,
    }
    directories = []
    for side, (ids, matrix) in matrices.items():
        directory = staging(f"{member.name}-{side}")
        Embeddings(ids, matrix, {"member": member.name, "side": side, "fingerprints": made_by}).save(directory)
        directories.append(directory)
    log.info("%s: embedded %d images and %d texts", member.name, len(image_ids), len(texts))
    return directories[0], directories[1]


def evaluate_member(
    image_embeddings: Embeddings,
    text_embeddings: Embeddings,
    captions: DataFrame,
    relevance: RelevanceConfig,
    evaluation: EvaluationConfig,
) -> DataFrame:
    """Metrics on dev and val over the full gallery of each group, both directions, with intervals."""
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.embeddings import check_made_by
    from xmodal_kedro.retrieval.judge import embedding_scores, judge_slices, judged_table
    from xmodal_kedro.retrieval.slices import cut_slices

    for embeddings in (image_embeddings, text_embeddings):
        check_made_by(embeddings, captions=table_fingerprint(captions))
    slices = cut_slices(captions, relevance, ["dev", "val"])
    judged = judge_slices(slices, embedding_scores(text_embeddings, image_embeddings), evaluation.ks)
    return judged_table(text_embeddings.meta["member"], judged, evaluation)
