"""Nodes of caption: a member's checkpoint to a captioner, its captions, and what they are worth."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
from xmodal_kedro.config.ensemble import EvaluationConfig, RuntimeConfig
from xmodal_kedro.config_loader import project_path

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image
    from plotly.graph_objects import Figure

    from xmodal_kedro.data.image_store import ImageStore
else:  # Kedro evaluates these hints, and the libraries behind them would cost start-up
    DataFrame = Figure = Image = ImageStore = Any

log = logging.getLogger(__name__)

DECODED = ["dev", "val", "test"]


def train_captioner(
    checkpoint: Path,
    captions: DataFrame,
    images: ImageStore,
    captioner: CaptionerConfig,
    captioning: CaptioningConfig,
    runtime: RuntimeConfig,
) -> tuple[Path, DataFrame]:
    """Train a captioner from a member's checkpoint, judged by its captions of dev after each epoch.

    Returns its staged checkpoint and a row per epoch. A training that was interrupted goes on where it was.
    """
    from xmodal_kedro.datasets.directory import staging, training_states
    from xmodal_kedro.pipelines.caption.training import CaptionJob, train_and_write
    from xmodal_kedro.training.launch import launch

    directory = staging(captioner.name)
    recipe = (captioner, captioning, runtime)
    job = CaptionJob(*recipe, checkpoint, captions, images.directory, directory, training_states())
    return directory, launch(train_and_write, job, runtime)


def plot_history(history: DataFrame) -> Figure:
    """Loss, rate and dev metrics over the epochs."""
    from xmodal_kedro.reporting.figures import training_curves

    return training_curves(history)


def decode_captions(
    captions: DataFrame,
    images: ImageStore,
    captioning: CaptioningConfig,
    runtime: RuntimeConfig,
    captioner: Any,
) -> DataFrame:
    """Caption every image of dev, val and test by one captioner: a checkpoint, or parameters that name weights."""
    from xmodal_kedro.captioning.generate import generate
    from xmodal_kedro.data.manifest import read_manifest
    from xmodal_kedro.data.tables import table_fingerprint
    from xmodal_kedro.training.device import pick_device

    device = pick_device(runtime)
    opened = _open(captioner, device)
    if isinstance(captioner, Path):
        made_by = read_manifest(captioner, "captioner")["fingerprints"]["captions"]
        if made_by != table_fingerprint(captions):
            log.warning(
                "%s was trained on other captions than these: images of dev may be among those that it has learned "
                "from. Run --pipelines=caption to train it anew",
                opened.name,
            )
    return generate(opened, captions, images, DECODED, captioning, device, opened.name)


def decode_ensemble(
    captions: DataFrame, images: ImageStore, captioning: CaptioningConfig, runtime: RuntimeConfig, **captioners: Any
) -> DataFrame:
    """Caption the same images by all captioners together; one alone is asked as it is."""
    from xmodal_kedro.captioning.ensemble import EnsembleCaptioner
    from xmodal_kedro.captioning.generate import generate
    from xmodal_kedro.training.device import pick_device

    device = pick_device(runtime)
    sources = {key.removesuffix("_captioner"): captioner for key, captioner in captioners.items()}
    config = captioning.ensemble
    weights = dict.fromkeys(sources, 1.0) if config.weights == "equal" else config.weights
    members = {name: _open(source, device) for name, source in sources.items() if weights[name]}
    ensemble = EnsembleCaptioner(members, [weights[name] for name in members], config.mix)
    name = "ensemble" if len(members) > 1 else next(iter(members))
    return generate(ensemble, captions, images, DECODED, captioning, device, name)


def judge_captions(
    generated: DataFrame,
    captions: DataFrame,
    images: ImageStore,
    captioning: CaptioningConfig,
    evaluation: EvaluationConfig,
    runtime: RuntimeConfig,
    clip: Path | None = None,
) -> tuple[DataFrame, DataFrame]:
    """Hold captions of dev and val to all references of their images; returns metrics, and a row per image."""
    from xmodal_kedro.captioning.judge import judge

    judged = judge(generated, captions, captioning, _clip_scores(clip, images, runtime))
    return judged.metrics(evaluation), judged.table()


def compare_captions(
    captions: DataFrame,
    images: ImageStore,
    captioning: CaptioningConfig,
    evaluation: EvaluationConfig,
    runtime: RuntimeConfig,
    clip: Path | None = None,
    **generated: DataFrame,
) -> tuple[DataFrame, DataFrame, DataFrame, DataFrame, Image]:
    """Judge captioners, ensemble and the captions that need no model side by side.

    Returns:
        Metrics of what is best at hand (the ensemble, or the only captioner), the leaderboard, paired differences, its
        captions with references and scores, and a sheet of photos with captions.
    """
    from xmodal_kedro.captioning.baselines import baseline_captions
    from xmodal_kedro.captioning.compare import compare
    from xmodal_kedro.reporting.captions import caption_sheet

    by_name = {key.removesuffix("_generated"): table for key, table in generated.items()}
    baselines = baseline_captions(captions, images, captioning.tokeniser)
    compared = compare(by_name, baselines, captions, captioning, evaluation, _clip_scores(clip, images, runtime))
    sheet = caption_sheet(compared.table, images)
    return compared.metrics, compared.leaderboard, compared.comparison, compared.table, sheet


def plot_captions(leaderboard: DataFrame, captioning: CaptioningConfig) -> Figure:
    """CIDEr-D of everybody as bars with intervals."""
    from xmodal_kedro.reporting.figures import caption_bars

    return caption_bars(leaderboard, captioning.named("cider_d"))


def write_captions(
    captions: DataFrame, captioning: CaptioningConfig, metrics: DataFrame, **generated: DataFrame
) -> dict[str, list[str]] | tuple[dict[str, list[str]], dict[str, list[str]]]:
    """res.json of the captioner that is best on dev, and res_ensemble.json where there is an ensemble."""
    from xmodal_kedro.reporting.captions import best_captioner, caption_submission

    by_name = {key.removesuffix("_generated"): table for key, table in generated.items()}
    ensemble = by_name.pop("ensemble", None)
    best = best_captioner(metrics, list(by_name))
    log.info("res.json holds the captions of %s", best)
    alone = caption_submission(by_name[best], captions, captioning.split)
    return alone if ensemble is None else (alone, caption_submission(ensemble, captions, captioning.split))


def write_new_captions(generated: DataFrame, captions: DataFrame) -> dict[str, list[str]]:
    """The captions of new images in the form of res.json."""
    from xmodal_kedro.reporting.captions import caption_submission

    return caption_submission(generated, captions, "test")


def _open(captioner: Any, device: Any) -> Any:
    """A captioner of packed pixels: from its checkpoint, or from parameters that name weights of its own."""
    from xmodal_kedro.captioning.checkpoint import open_captioner

    source = captioner if isinstance(captioner, Path) else CaptionerConfig.model_validate(captioner)
    return open_captioner(source, project_path(), device)


def _clip_scores(checkpoint: Path | None, images: ImageStore, runtime: RuntimeConfig) -> Any:
    """What gives CLIPScore and RefCLIPScore by a member, if one is asked for."""
    if checkpoint is None:
        return None
    from xmodal_kedro.captioning.clip import ClipScores
    from xmodal_kedro.models.checkpoint import read_checkpoint
    from xmodal_kedro.training.device import pick_device

    device = pick_device(runtime)
    return ClipScores(read_checkpoint(checkpoint, device), images, device)
