"""Captions at the end of a run: the published JSON and whose captions it holds, a sheet of photos, the leaderboard."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table

from xmodal_kedro.captioning.baselines import CONSTANT, NEAREST
from xmodal_kedro.captioning.judge import BETWEEN
from xmodal_kedro.captioning.metric_names import TOKENISERS
from xmodal_kedro.reporting.sheets import contact_sheet, find_cjk_font
from xmodal_kedro.reporting.submission import file_names

if TYPE_CHECKING:
    from PIL.Image import Image

    from xmodal_kedro.config.data import Split
    from xmodal_kedro.data.image_store import ImageStore

log = logging.getLogger(__name__)

CIDER_D = "cider_d"
SHOWN = (CIDER_D, "bleu_4", "rouge_l")
DISTINCT = "distinct_captions"
REPORTED = ("val", "dev")  # the first that is there is shown
NO_MODEL = {
    CONSTANT: "constant: the train sentence that is best for all train photos",
    NEAREST: "nearest: a sentence of the train photo with the nearest pixels",
}
FIRST_CJK = "\u2e80"


def caption_submission(
    generated: pd.DataFrame, captions: pd.DataFrame, split: Split | None = None
) -> dict[str, list[str]]:
    """The object to write as JSON (UTF-8, not ASCII-escaped): `{"<file name>.jpg": ["caption"]}`.

    Args:
        generated: `split, image_id, caption`; ids are file names or paths, whose last part is written where no other
            image has it, else the whole.
        captions: The caption table: which images a split has, and in what order.
        split: Whose captions; by default `test` if it has images, else `val`.

    Returns:
        One entry per captioned image; images without a caption are counted in the log.

    Raises:
        ValueError: The split has no captioned images.
    """
    with_images = captions.loc[captions["image_id"].notna(), ["split", "image_id"]]
    there = set(with_images["split"])
    if split is None:
        split = "test" if "test" in there else "val"
    wanted = with_images.loc[with_images["split"] == split, "image_id"].drop_duplicates()
    rows = generated[generated["split"] == split]
    caption_of = dict(zip(rows["image_id"], rows["caption"], strict=True))
    captioned = wanted[wanted.isin(list(caption_of))]
    if captioned.empty:
        found = ", ".join(dict.fromkeys(generated["split"])) or "none"
        raise ValueError(
            f"there are no captions of {split} to hand in; splits with captions: {found}. Give that split images in "
            "data.sources, or set captioning.split to another one."
        )
    if len(captioned) < len(wanted):
        missing = wanted[~wanted.isin(list(caption_of))].iloc[0]
        log.warning(
            "%d images of %s have no caption and are not in the file, the first is %s",
            *(len(wanted) - len(captioned), split, missing),
        )
    names = file_names(captioned)
    return {names[image]: [caption_of[image]] for image in captioned}


def best_captioner(leaderboard: pd.DataFrame, names: Sequence[str]) -> str:
    """The captioner with the highest CIDEr-D on dev, of equal ones the first.

    Args:
        leaderboard: Columns `split, captioner` and metrics.
        names: Who is asked; without a dev split it is the first, and the log says so.
    """
    if len(names) == 1:
        return names[0]
    metric = _with_tokeniser(leaderboard, CIDER_D)
    on_dev = leaderboard[leaderboard["split"] == "dev"].set_index("captioner")[metric]
    known = [name for name in names if name in on_dev.index]
    if not known:
        log.warning("There are no captions of dev to choose a captioner by: taking %s, the first", names[0])
        return names[0]
    return max(known, key=lambda name: on_dev[name])


def caption_sheet(table: pd.DataFrame, images: ImageStore, count: int = 24) -> Image:
    """Photos over their caption, its CIDEr-D and a reference, taken evenly over val (dev where there is no val).

    Args:
        table: `split, image_id, caption, references, cider_d_<tokeniser>`, a row per image.
        images: The packed images.
        count: Photos at most; none is picked by its score.
    """
    split = _reported(table)
    rows = table[table["split"] == split]
    rows = rows.iloc[[place * len(rows) // min(count, len(rows)) for place in range(min(count, len(rows)))]]
    metric = _with_tokeniser(rows, CIDER_D)
    references = [str(texts).split(BETWEEN)[0] for texts in rows["references"]]
    texts = [
        f"{caption}\nCIDEr-D {score:.2f}\nref: {reference}"
        for caption, score, reference in zip(rows["caption"], rows[metric], references, strict=True)
    ]
    if any(letter >= FIRST_CJK for text in texts for letter in text) and find_cjk_font() is None:
        log.warning(
            "No font of this machine has Chinese letters: the sheet of captions shows boxes in their place. Install "
            "one, such as Noto Sans CJK; the table of captions holds the texts anyway"
        )
    return contact_sheet(
        [images.pixels[row] for row in images.rows(rows["image_id"].tolist())], texts, cell=176, lines=7
    )


def render_captions(leaderboard: pd.DataFrame, comparison: pd.DataFrame, width: int = 100) -> str:
    """Captioners, ensemble and captions that need no model as plain text.

    Args:
        leaderboard: Columns `split, captioner, images`, then of each metric `m`, `m.low`, `m.high`.
        comparison: Columns `split, captioner, metric, difference, low, high, p`: the best at hand minus each other.
        width: Of a line, in characters.

    Returns:
        A row per captioner on val (dev where there is no val), the best of each metric marked with a star; then what
        the best at hand has over the others in CIDEr-D, by the same images.
    """
    split = _reported(leaderboard)
    rows = leaderboard[leaderboard["split"] == split]
    shown = {metric: name for metric in SHOWN if (name := _with_tokeniser(rows, metric, required=False))}
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("captioner", overflow="fold")
    for metric in [*shown, DISTINCT]:
        table.add_column(metric, justify="right")
    for row in rows.to_dict("records"):
        cells = [
            _cell(row, name, 1.0 if metric == CIDER_D else 100.0, len(rows) > 1 and row[name] == rows[name].max())
            for metric, name in shown.items()
        ]
        table.add_row(str(row["captioner"]), *cells, _cell(row, DISTINCT, 100.0))
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, emoji=False, markup=False)
    console.print(f"{split}: captions of {int(rows['images'].iloc[0])} images")
    console.print(table)
    console.print()
    console.print(
        f"{', '.join(shown.values())}: against all references of an image; CIDEr-D as it is (0 to 10), the others in "
        f"percent, [95 % interval], * best. {DISTINCT}: the share of captions that differ."
    )
    if told := [meaning for name, meaning in NO_MODEL.items() if name in set(rows["captioner"])]:
        console.print(f"{'; '.join(told)}.")
    others = comparison[(comparison["split"] == split) & (comparison["metric"] == shown[CIDER_D])]
    if len(others):
        best = next(name for name in rows["captioner"] if name not in set(others["captioner"]))
        console.print(f"\n{best} against the others on {split} in CIDEr-D (paired by image):")
        for row in others.to_dict("records"):
            change = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], p = {row['p']:.4f}"
            console.print(f"  {best} - {row['captioner']}: {change}", soft_wrap=True)
    return text.getvalue()


def _reported(table: pd.DataFrame) -> str:
    """val, or dev where there is no val."""
    there = set(table["split"])
    split = next((split for split in REPORTED if split in there), None)
    if split is None:
        raise ValueError(f"captions are shown of val or dev; there are: {', '.join(sorted(there)) or 'none'}.")
    return split


def _with_tokeniser(table: pd.DataFrame, metric: str, required: bool = True) -> str:
    """The column of a metric, whose name ends with the tokeniser; empty where there is none and none is required."""
    found = next((name for kind in TOKENISERS if (name := f"{metric}_{kind}") in table), "")
    if required and not found:
        raise ValueError(f"there is no {metric}_<tokeniser> among the columns {', '.join(table.columns)}.")
    return found


def _cell(row: Mapping[Hashable, float], name: str, factor: float, best: bool = False) -> str:
    value, low, high = (row.get(key, math.nan) for key in (name, f"{name}.low", f"{name}.high"))
    if math.isnan(value):
        return "-"
    digits = 3 if factor == 1.0 else 1
    interval = "" if math.isnan(low) else f" [{low * factor:.{digits}f}, {high * factor:.{digits}f}]"
    return f"{value * factor:.{digits}f}{interval}{'*' if best else ' '}"
