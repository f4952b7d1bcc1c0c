"""What the data nodes say of data that cannot be used."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from xmodal_kedro.config.data import DataConfig, PromptsConfig
from xmodal_kedro.data.quarantine import COLUMNS
from xmodal_kedro.pipelines.data_processing.nodes import clean_queries


def test_photos_of_test_that_cannot_be_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """A file that is handed in lacks them, and a judge may want every one."""
    names = ["a.jpg", "broken.jpg", "gone.jpg"]
    pairs = pd.DataFrame({"image_id": names, "path": names, "split": "test", "group": "all", "source": "s", "row": 0})
    pairs = pairs.assign(text_id=None, text=None, attributes=None)
    bad = pd.DataFrame(
        {**dict.fromkeys(COLUMNS, "images"), "key": ["broken.jpg", "gone.jpg"], "reason": "image is cut short"}
    )
    data = DataConfig.model_validate(
        {"root": ".", "sources": [{"split": "test", "format": "folder", "images": "."}], "max_bad_share": 1.0}
    )
    none = bad.iloc[:0]
    with caplog.at_level(logging.WARNING):
        kept, _ = clean_queries(pairs, none, bad, data, PromptsConfig())
    assert kept["image_id"].tolist() == ["a.jpg"]
    assert "2 images of test cannot be read, and will be in no file that is handed in; the first is broken.jpg" in (
        caplog.messages
    )
    caplog.clear()
    clean_queries(pairs, none, none, data, PromptsConfig())
    assert not caplog.messages
