"""Before the first node: can captions be judged and handed in as the recipe says?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
from xmodal_kedro.config.data import Source
from xmodal_kedro.data.findings import Report


def check_judging(
    trained: Mapping[str, CaptionerConfig], captioning: CaptioningConfig, sources: Sequence[Source]
) -> Report:
    """Look for what metrics need, and for images of the split that is handed in.

    Args:
        trained: The captioners that the run trains, by name.
        captioning: How captions are judged.
        sources: Of the data.
    """
    from xmodal_kedro.captioning.metrics import unavailable

    report = Report()
    # No metric of characters needs more than itself: what only words lack is the tokeniser.
    if unavailable(captioning.named("cider_d")):
        report.problems.append(
            f"captioning.tokeniser: '{captioning.tokeniser}' needs jieba, which is not installed. Set it to "
            "characters, or install xmodal-kedro[captioning]."
        )
    for name, captioner in trained.items():
        if captioner.train and (reason := unavailable(f"{captioner.train.metric}_characters")):
            report.problems.append(f"{name}.train.metric: {reason} Or set the key to cider_d.")
    with_images = {source.split for source in sources if _has_images(source)}
    if "train" in with_images:
        with_images.add("dev")  # is cut from it
    wanted = ["test", "val"] if captioning.split is None else [captioning.split]
    if with_images.isdisjoint(wanted):
        there = [split for split in ("dev", "val", "test") if split in with_images]
        report.problems.append(
            f"captioning.split: no source of data.sources has images of {' or '.join(wanted)}, whose captions are to "
            f"be handed in. Add one, or set the key to a split with images ({', '.join(there) or 'there is none'})."
        )
    return report


def _has_images(source: Source) -> bool:
    columns = source.columns
    named = columns.image is not None or columns.bytes is not None
    return source.format == "folder" or (source.format != "queries" and named)
