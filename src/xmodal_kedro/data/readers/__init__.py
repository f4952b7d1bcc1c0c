"""Readers: any user's folder becomes the pair table, one file per format."""

from xmodal_kedro.data.readers import folder, jsonl, parquet, queries, table, track2
from xmodal_kedro.data.readers.assemble import PAIR_COLUMNS, Read
from xmodal_kedro.data.readers.registry import READERS
from xmodal_kedro.data.readers.rows import SourceError
from xmodal_kedro.data.readers.sources import read_pairs, read_source

__all__ = ["PAIR_COLUMNS", "READERS", "Read", "SourceError", "read_pairs", "read_source"]
FORMATS = (folder, jsonl, parquet, queries, table, track2)  # importing them registers their readers
