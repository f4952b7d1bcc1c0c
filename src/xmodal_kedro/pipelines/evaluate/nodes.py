"""Nodes of evaluate: a member's checkpoint to embeddings of all that is ranked, and to metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig
from xmodal_kedro.config.ensemble import BANKED, EnsembleConfig, EvaluationConfig, RuntimeConfig
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
    checkpoint: Path,
    captions: DataFrame,
    images: ImageStore,
    member: MemberConfig,
    runtime: RuntimeConfig,
    ensemble: EnsembleConfig,
    image_embeddings: Embeddings | None = None,
    text_embeddings: Embeddings | None = None,
) -> tuple[Path, Path]:
    """Encode every image and text of dev, val and test, and a bank of train where the fusion needs one.

    Returns two staged directories of embeddings. Where embeddings are given, theirs is the bank.
    """
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.datasets.directory import staging
    from xmodal_kedro.models.checkpoint import read_checkpoint
    from xmodal_kedro.retrieval.bank import draw_bank, with_bank, with_bank_of
    from xmodal_kedro.retrieval.embed import embed_images, embed_texts
    from xmodal_kedro.retrieval.embeddings import Embeddings
    from xmodal_kedro.training.device import pick_device

    device = pick_device(runtime)
    loaded = read_checkpoint(checkpoint, device)
    encode = {"batch_size": member.embed.batch_size, "device": device, "precision": member.embed.precision}
    made_by = {
        "weights": loaded.fingerprints["weights"],
        "transform": loaded.fingerprints["transform"],
        "captions": table_fingerprint(captions),
        "images": images.fingerprint,
    }
    size = ensemble.fusion.bank_size if ensemble.fusion.normalisation_of(member.name) in BANKED else 0
    ranked = captions[captions["split"].isin(RANKED)]
    directories = []
    for side, saved in (("image", image_embeddings), ("text", text_embeddings)):
        rows = ranked.dropna(subset=[f"{side}_id"]).drop_duplicates(f"{side}_id")
        drawn = draw_bank(captions, side, size if saved is None else 0)
        ids, of_bank = rows[f"{side}_id"].tolist(), drawn[f"{side}_id"].tolist()
        if side == "image":
            matrix = embed_images(loaded.backbone, images.pixels, images.rows(ids + of_bank), **encode)
        else:
            matrix = embed_texts(loaded.backbone, [*rows["text"], *drawn["text"]], **encode)
        meta = {"member": member.name, "side": side, "fingerprints": made_by}
        found = Embeddings(ids, matrix[: len(ids)], meta)
        if saved is not None:
            found = with_bank_of(found, saved)
        elif size:
            found = with_bank(found, of_bank, drawn["group"].tolist(), matrix[len(ids) :], size)
        directories.append(staging(f"{member.name}-{side}"))
        found.save(directories[-1])
        banked = f", and {len(found) - len(ids)} of train as a bank" if len(found) > len(ids) else ""
        log.info("%s: embedded %d %ss%s", member.name, len(ids), side, banked)
    return directories[0], directories[1]


def evaluate_member(
    image_embeddings: Embeddings,
    text_embeddings: Embeddings,
    captions: DataFrame,
    relevance: RelevanceConfig,
    evaluation: EvaluationConfig,
    prompts: PromptsConfig,
) -> tuple[DataFrame, DataFrame]:
    """Metrics on dev and val over the full gallery of each group, both directions, with intervals.

    Returns two tables: of all queries, and per attribute of the texts, without rows where captions carry none.
    """
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.retrieval.embeddings import check_made_by
    from xmodal_kedro.retrieval.judge import attribute_table, embedding_scores, judge_slices, judged_table
    from xmodal_kedro.retrieval.slices import attribute_labels, cut_slices

    for embeddings in (image_embeddings, text_embeddings):
        check_made_by(embeddings, captions=table_fingerprint(captions))
    slices = cut_slices(captions, relevance, ["dev", "val"])
    judged = judge_slices(slices, embedding_scores(text_embeddings, image_embeddings), evaluation.ks)
    member, labels = text_embeddings.meta["member"], attribute_labels(captions, prompts)
    by_attribute = attribute_table(member, judged, slices, labels, evaluation)
    return judged_table(member, judged, evaluation), by_attribute
