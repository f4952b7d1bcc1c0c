"""The files at the end: the ranked JSON of CVPR 2023 track 2, and the CSV of a one-to-one matching.

The CSV is one column, or the sample file of a contest with that column filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from xmodal_kedro.config.data import DataConfig, Split
from xmodal_kedro.data.paths import ImageTree
from xmodal_kedro.data.readers.rows import Reading
from xmodal_kedro.data.readers.table import table_cells
from xmodal_kedro.data.text_files import is_undecodable, read_text


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
    names = file_names(ranked["gallery_id"])
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
    names = file_names(matched["image_id"])
    partner = dict(zip(matched["text_id"], matched["image_id"].map(names), strict=True))
    return pd.DataFrame({name_column: pd.array([partner.get(text, "") for text in texts["text_id"]], dtype="str")})


class TemplateError(ValueError):
    """The sample file does not fit the queries; the message names file and row."""


def fill_template(
    file: Path,
    answers: pd.DataFrame,
    texts: pd.DataFrame,
    shown: Mapping[str, str],
    key: str,
    cells: Callable[[], pd.DataFrame] = pd.DataFrame,
) -> pd.DataFrame:
    """Put the answers into the sample file of a contest: its other columns and the order of its rows are kept.

    Rows are found by the id of their query where the sample file has such a column. Else they are the queries in order
    if every other column that the two files share says so, or are found by one of these that is as good as an id.

    Args:
        file: The sample file, a CSV.
        answers: One column, a row per query: what replaces the column of that name.
        texts: `text_id, text` of the queries, in the order of `answers`.
        shown: Columns that the sample file may have in common with the file of the queries, to `text_id` or `text`;
            what stands there must be the same.
        key: How errors name the setting.
        cells: Gives what else stands in the file of the queries, a row per query; see `query_cells`. Asked where the
            sample file has no ids.

    Returns:
        The table to write, cells as they stood in the sample file.

    Raises:
        TemplateError: It cannot be read, lacks the column or a query, has rows of no query, or another text. Rows are
            numbered as in the file, its header being the first.
    """
    where = f"{key}: {file}"
    try:
        text = read_text(file)
        if is_undecodable(text):
            raise ValueError("it holds bytes that are no text: save it as UTF-8, UTF-16 with a BOM, or GB18030")
        table = pd.read_csv(StringIO(text), dtype="str", keep_default_na=False)
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
    if "text_id" not in common:
        asked = cells().dropna(axis=1)
        others = [column for column in asked if column in table and column not in shown and column != name_column]
        places = _places_by_cells(table[others], asked[others], places, where) if others else places
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


def query_cells(data: DataConfig, split: Split, texts: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Every column of the tables (CSV, TSV) that queries come from, whether or not the recipe names it.

    Args:
        data: The sources.
        split: That of the queries.
        texts: `source, row` of the queries.
        root: `data.root` as a whole path.

    Returns:
        A row per query in the order of `texts`, missing where its file lacks the column; no columns where no query
        comes from a table.
    """
    tables = [pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []]), dtype="str")]
    for number, source in enumerate(data.sources):
        if source.split == split and source.format == "table" and source.file in set(texts["source"]):
            cells = table_cells(Reading(ImageTree(root), source, f"data.sources[{number}]"))
            tables.append(cells.set_index(pd.MultiIndex.from_product([[source.file], cells.index])))
    found = pd.concat(tables)
    return found[~found.index.duplicated()].reindex(pd.MultiIndex.from_frame(texts[["source", "row"]]))


def _places_by_cells(table: pd.DataFrame, cells: pd.DataFrame, places: np.ndarray, where: str) -> np.ndarray:
    """Position of the query of each row [N], by columns that both files have; `places` if these say nothing else."""
    theirs, ours = (part.apply(lambda column: column.str.strip()) for part in (table, cells))
    if (theirs.to_numpy() == ours.to_numpy()[places]).all():
        return places
    for column in theirs:
        index = pd.Index(ours[column])
        if index.is_unique and theirs[column].is_unique and set(index) == set(theirs[column]):
            places = index.get_indexer(pd.Index(theirs[column]))
            break
    differs = theirs.to_numpy() != ours.to_numpy()[places]
    if differs.any():
        row, place = np.argwhere(differs)[0]
        column = theirs.columns[place]
        raise TemplateError(
            f"{where}, row {row + 2}: {column} is '{table[column].iloc[row]}', but in the file of the queries it is "
            f"'{cells[column].iloc[places[row]]}', and by no column can the rows be told apart. Bring both files into "
            f"one order, or rename the column in the sample file if it means something else."
        )
    return places


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


def file_names(images: pd.Series) -> dict[str, str]:
    """Image id to the last part of its path, or to the whole path where another image has the same last part."""
    distinct = pd.Series(images.unique(), dtype="str")
    names = distinct.map(lambda image: PurePosixPath(image).name)
    return dict(zip(distinct, names.where(~names.duplicated(keep=False), distinct), strict=True))
