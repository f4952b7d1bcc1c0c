"""Nodes of data_processing: each unpacks its parameters, calls the library and returns tables."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.data import (
    CompletionConfig,
    DataConfig,
    ImagesConfig,
    PromptsConfig,
    RelevanceConfig,
    SyntheticConfig,
)
from xmodal_kedro.config.ensemble import RuntimeConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.config_loader import project_path

if TYPE_CHECKING:
    from pandas import DataFrame

    from xmodal_kedro.data.image_store import ImageStore
else:  # Kedro evaluates these hints, and pandas would cost start-up
    DataFrame = ImageStore = Any

log = logging.getLogger(__name__)


def draw_synthetic_traffic(synthetic: SyntheticConfig) -> dict[str, Any]:
    """Draw the embedded default data set; what is drawn already stays."""
    from xmodal_kedro.data.synthetic_traffic import draw

    return draw(synthetic, project_path() / synthetic.folder)


def read_pairs(data: DataConfig, drawn: dict[str, Any] | None = None) -> tuple[DataFrame, DataFrame]:
    """Read every source to one pair table, and the rows that cannot be used to a quarantine table."""
    from xmodal_kedro.data.readers import read_pairs as read

    result = read(data, project_path())
    log.info("Read %d rows: %d pairs, %d set aside", result.rows, len(result.pairs), len(result.quarantine))
    return result.pairs, result.quarantine


def read_new_data(predict: DataConfig, data: DataConfig) -> tuple[DataFrame, DataFrame]:
    """Read new images and queries; they fall into the groups of the recipe unless they have rules of their own."""
    return read_pairs(predict.model_copy(update={"groups": predict.groups or data.groups}))


def pack_images(
    raw_pairs: DataFrame, row_quarantine: DataFrame, data: DataConfig, images: ImagesConfig
) -> tuple[ImageStore, DataFrame]:
    """Decode, fit and pack each image once; a store of the same files and settings is used again.

    Too many bad rows stop the run here: what was set aside is saved by now, and nothing long has begun.
    """
    import pandas as pd

    from xmodal_kedro.data.image_store import pack_or_reuse
    from xmodal_kedro.data.quarantine import check_share

    rows = pd.concat([raw_pairs, row_quarantine])[["source", "row"]].drop_duplicates()
    check_share(row_quarantine, len(rows), 0, data.max_bad_share)
    with_image = raw_pairs.dropna(subset=["image_id"]).drop_duplicates("image_id")
    items = list(zip(with_image["image_id"], with_image["path"], strict=True))
    store, quarantine = pack_or_reuse(items, project_path() / data.root, project_path() / images.store, images)
    log.info("%d images of %d px at %s, %d set aside", len(store.ids), store.size, store.directory, len(quarantine))
    return store, quarantine


def clean_pairs(
    raw_pairs: DataFrame,
    row_quarantine: DataFrame,
    image_quarantine: DataFrame,
    images: ImageStore,
    data: DataConfig,
) -> tuple[DataFrame, DataFrame]:
    """Drop pairs whose image is unreadable, cut dev from train, report leaks, and stop if too much is bad."""
    from xmodal_kedro.data.leaks import same_pictures
    from xmodal_kedro.data.quarantine import check_share
    from xmodal_kedro.data.splits import cut_dev

    check_share(image_quarantine, 0, raw_pairs["image_id"].nunique(), data.max_bad_share)
    pairs = cut_dev(_readable(raw_pairs, image_quarantine), data.dev_share, data.seed, data.dev_by)
    for (split, group), rows_of in pairs.groupby(["split", "group"], sort=False):
        counts = rows_of["image_id"].nunique(), rows_of["text_id"].nunique()
        log.info("%-5s %-10s %6d images %6d texts", split, group, *counts)
    if "dev" not in set(pairs["split"]):
        raise ValueError("no dev split: train has too few images to cut one, or no source has `split: train`")
    for split, other, count in same_pictures(pairs, images):
        log.warning("Leak: %d images of %s are the same pixels as images of %s under another name", count, split, other)
    return pairs, _quarantine(row_quarantine, image_quarantine)


def clean_queries(
    raw_pairs: DataFrame,
    row_quarantine: DataFrame,
    image_quarantine: DataFrame,
    predict: DataConfig,
    prompts: PromptsConfig,
    captions: DataFrame | None = None,
) -> tuple[DataFrame, DataFrame]:
    """Drop new images that are unreadable, and give new queries the prompts that the test queries would get.

    The captions that the members were trained on supply the vocabulary, where it is learned; photos alone need none.
    """
    from xmodal_kedro.data.prompts import augment, train_vocabulary
    from xmodal_kedro.data.quarantine import check_share

    check_share(image_quarantine, 0, raw_pairs["image_id"].nunique(), predict.max_bad_share)
    rows = _readable(raw_pairs, image_quarantine)
    queries = augment(rows, prompts, train_vocabulary(rows if captions is None else captions, prompts))
    return queries, _quarantine(row_quarantine, image_quarantine)


def complete_attributes(
    pairs: DataFrame,
    images: ImageStore,
    prompts: PromptsConfig,
    completion: CompletionConfig,
    member: MemberConfig,
    runtime: RuntimeConfig,
) -> DataFrame:
    """Let the un-tuned model of a member say which colours, brands or types the vehicles have whose phrase does not."""
    from functools import partial

    from xmodal_kedro.data.completion import complete_or_reuse, completion_key, incomplete_rows, untuned
    from xmodal_kedro.data.prompts import train_vocabulary

    vocabulary = train_vocabulary(pairs, prompts)
    rows = incomplete_rows(pairs, images.ids, prompts, vocabulary, completion)
    backbone = untuned(member.backbone).at(project_path())
    seed, precision = member.train.seed, member.embed.precision
    key = partial(completion_key, rows, vocabulary, completion, backbone, seed, precision, images.fingerprint)

    def make() -> DataFrame:
        from xmodal_kedro.data.completion import complete
        from xmodal_kedro.models import build
        from xmodal_kedro.retrieval.embed import embed_images, embed_texts
        from xmodal_kedro.training.device import pick_device

        texts = pairs["text"].dropna().unique().tolist()
        model = build(backbone, seed, texts, root=project_path()) if len(rows) else None
        encode = {
            "batch_size": member.embed.batch_size,
            "device": pick_device(runtime),
            "precision": precision,
            "progress": True,
        }
        return complete(
            rows,
            vocabulary,
            completion.template,
            lambda ids: embed_images(model, images.pixels, images.rows(ids), **encode),
            lambda texts: embed_texts(model, texts, **encode),
        )

    completed, reused = complete_or_reuse(rows, project_path() / completion.store, key, make)
    how = "as completed by an earlier run" if reused else f"by {member.name} before training"
    log.info("Completed the attributes of %d train pairs %s", len(completed), how)
    return completed


def make_captions(
    pairs: DataFrame, prompts: PromptsConfig, relevance: RelevanceConfig, completed: DataFrame | None = None
) -> DataFrame:
    """Prompt augmentation: train rows by the templates of their group, the rest in the form of queries."""
    from xmodal_kedro.data.groups import misspelt_groups
    from xmodal_kedro.data.prompts import augment, train_vocabulary

    named = {
        "prompts.groups": prompts.groups,
        "prompts.vehicle_group": [prompts.vehicle_group],
        "relevance.groups": relevance.groups,
    }
    for problem in misspelt_groups(named, pairs["group"].unique()):
        log.warning("%s", problem)

    captions = augment(pairs, prompts, train_vocabulary(pairs, prompts), completed)
    log.info("%d captions from %d pairs", len(captions), len(pairs))
    return captions


def _quarantine(*tables: DataFrame) -> DataFrame:
    """All that was set aside, with a line in the log per reason."""
    from xmodal_kedro.data.quarantine import counts, merge

    quarantine = merge(*tables)
    for found in counts(quarantine).itertuples():
        log.warning("Set aside: %d x %s (%s); see the dataset quarantine", found.count, found.reason, found.kind)
    return quarantine


def _readable(pairs: DataFrame, image_quarantine: DataFrame) -> DataFrame:
    unreadable = pairs["path"].isin(image_quarantine["key"])
    lost = pairs.loc[unreadable & (pairs["split"] == "test"), "path"].drop_duplicates()
    if len(lost):
        log.warning(
            "%d images of test cannot be read, and will be in no file that is handed in; the first is %s",
            *(len(lost), lost.iloc[0]),
        )
    return pairs[~unreadable]
