"""The files at the end: the ranked JSON of CVPR 2023 track 2, and the CSV of a one-to-one matching.

The CSV is one column, or the sample file of a contest with that column filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import DataConfig, Split
from xmodal_kedro.data.text_files import read_text


def track2_submission(texts: pd.DataFrame, ranked: pd.DataFrame, top_k: int = 10) -> dict[str, Any]:
    """The object to write as JSON (indent 4, not ASCII-escaped).

    Args:
        texts: `text_id, text` of the queries, one row each, in the order of the file they came from.
        ranked: `query_id, rank, gallery_id`; ids of images are file names, paths (their last part is submitted where
            no other image has it, else the whole) or names of the user's own.
        top_k: Images per query, 10 in track 2.

    Returns:
        `{"results": [{"text": ..., "image_names": [...]}, ...]}`, an entry per row of `texts`; where a gallery is
        smaller than `top_k`, all of it.

    Raises:
        ValueError: A query has no image at all.
    """
    names = _file_names(ranked["gallery_id"])
    best = ranked[ranked["rank"] <= top_k].sort_values(["query_id", "rank"], kind="stable")
    images = best["gallery_id"].map(names).groupby(best["query_id"]).agg(list).to_dict()
    results = []
    for query, text in zip(texts["text_id"], texts["text"], strict=True):
        found = images.get(query, [])
        if not found:
            raise ValueError(
                f"query {query} ('{text}') has no ranked images: there is no image of its group in this split. Add "
                "images, or correct data.groups so that queries and images fall into the same group."
            )
        results.append({"text": text.strip(), "image_names": found})
    return {"results": results}


def matching_csv(texts: pd.DataFrame, matched: pd.DataFrame, name_column: str = "image_name") -> pd.DataFrame:
    """The one column of the CSV of a one-to-one matching.

    Args:
        texts: `text_id` of the queries in the order of the file they came from.
        matched: `group, text_id, image_id`; in a group each at most once.
        name_column: Its header.

    Returns:
        A row per query: the file name of its image, empty where there were more queries than images.

    Raises:
        ValueError: A query or an image is matched twice.
    """
    for column in ("text_id", "image_id"):
        if (twice := matched.duplicated(["group", column])).any():
            raise ValueError(f"{column} {matched.loc[twice, column].iloc[0]} is matched twice: this is not one to one.")
    names = _file_names(matched["image_id"])
    partner = dict(zip(matched["text_id"], matched["image_id"].map(names), strict=True))
    return pd.DataFrame({name_column: pd.array([partner.get(text, "") for text in texts["text_id"]], dtype="str")})


class TemplateError(ValueError):
    """The sample file does not fit the queries; the message names file and row."""


def fill_template(
    file: Path, answers: pd.DataFrame, texts: pd.DataFrame, shown: Mapping[str, str], key: str
) -> pd.DataFrame:
    """Put the answers into the sample file of a contest: its other columns and the order of its rows are kept.

    Rows are found by the id of their query where the sample file has such a column, else they are the queries in order.

    Args:
        file: The sample file, a CSV.
        answers: One column, a row per query: what replaces the column of that name.
        texts: `text_id, text` of the queries, in the order of `answers`.
        shown: Columns that the sample file may have in common with the file of the queries, to `text_id` or `text`;
            what stands there must be the same.
        key: How errors name the setting.

    Returns:
        The table to write, cells as they stood in the sample file.

    Raises:
        TemplateError: It cannot be read, lacks the column or a query, has rows of no query, or another text. Rows are
            numbered as in the file, its header being the first.
    """
    where = f"{key}: {file}"
    try:
        table = pd.read_csv(StringIO(read_text(file)), dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:  # of pandas too, whose errors are ValueErrors
        raise TemplateError(f"{where} cannot be read ({error}).") from error
    (name_column,) = answers.columns
    if name_column not in table:
        raise TemplateError(
            f"{where} has no column '{name_column}', which is to be filled; it has {', '.join(map(repr, table))}. Set "
            "ensemble.submission.name_column to one of them."
        )
    common = {role: column for column, role in shown.items() if column in table and column != name_column}
    places = _places(table, texts, common.get("text_id"), where)
    if "text" in common:
        column = common["text"]
        for row, (text, place) in enumerate(zip(table[column], places, strict=True)):
            if text.strip() != texts["text"].iloc[place].strip():
                raise TemplateError(
                    f"{where}, row {row + 2}: {column} is '{text}', but the query is '{texts['text'].iloc[place]}'."
                )
    table[name_column] = answers[name_column].to_numpy()[places]
    return table


def shown_columns(data: DataConfig, split: Split) -> dict[str, str]:
    """Columns of a split's source files that hold ids and texts of queries: column to `text_id` or `text`."""
    shown = {}
    for source in data.sources:
        columns = source.columns
        if source.split == split and source.format in ("table", "jsonl", "parquet") and isinstance(columns.text, str):
            shown[columns.text] = "text"
            if columns.text_id is not None:
                shown[columns.text_id] = "text_id"
    return shown


def _places(table: pd.DataFrame, texts: pd.DataFrame, column: str | None, where: str) -> np.ndarray:
    """Position of the query of each row [N]; every query has one row."""
    ids = texts["text_id"].astype("str") if column is not None else pd.Series(range(len(texts)))
    wanted = table[column].str.strip() if column is not None else pd.Series(range(len(table)))
    places = pd.Index(ids).get_indexer(pd.Index(wanted))
    problem = None
    if (unknown := places < 0).any():
        problem = "is no query (the quarantine lists queries that were set aside)", unknown
    elif (twice := pd.Series(places).duplicated().to_numpy()).any():
        problem = "stands there twice", twice
    if problem is not None and column is not None:
        row = int(problem[1].argmax())
        raise TemplateError(f"{where}, row {row + 2}: {column} '{wanted.iloc[row]}' {problem[0]}.")
    if len(table) != len(texts):
        lacking = "" if column is None else f"; {column} '{ids[~ids.isin(wanted)].iloc[0]}' is not among them"
        raise TemplateError(
            f"{where} has {len(table)} rows, but there are {len(texts)} queries{lacking}. The two files must belong "
            "together; the quarantine lists queries that were set aside."
        )
    return places


def _file_names(images: pd.Series) -> dict[str, str]:
    """Image id to the last part of its path, or to the whole path where another image has the same last part."""
    distinct = pd.Series(images.unique(), dtype="str")
    names = distinct.map(lambda image: PurePosixPath(image).name)
    return dict(zip(distinct, names.where(~names.duplicated(keep=False), distinct), strict=True))
