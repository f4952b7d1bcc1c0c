"""Nested values become flat names and numbers that MLflow accepts."""

import dataclasses
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric, Param
from mlflow.utils.validation import _validate_metric, _validate_param
from pydantic import BaseModel

from xmodal_kedro.tracking.records import MAX_PARAM, clean_key, cut, flat_params, metrics_of


class Loss(BaseModel):
    smoothing: float = 0.1
    kinds: list[str] = ["itc"]


@dataclasses.dataclass
class Source:
    file: str
    group: str | None = None


def test_models_mappings_and_dataclasses_flatten_to_one_key_per_leaf() -> None:
    value = {
        "lr": 1e-5,
        "loss": Loss(),
        "sources": [Source("a.txt"), Source("b.txt", "vehicle")],
        "empty": {},
        "on": True,
    }
    assert flat_params(value, "train") == {
        "train.lr": "1e-05",
        "train.loss.smoothing": "0.1",
        "train.loss.kinds": '["itc"]',
        "train.sources.0.file": "a.txt",
        "train.sources.0.group": "none",
        "train.sources.1.file": "b.txt",
        "train.sources.1.group": "vehicle",
        "train.empty": "{}",
        "train.on": "true",
    }


def test_a_long_value_keeps_its_beginning_and_says_how_long_it_was() -> None:
    value = flat_params("x" * 10_000, "prompt")["prompt"]
    assert len(value) == MAX_PARAM
    assert value.endswith("x... (10000 characters)")
    assert cut("short", 5) == "short"


keys = st.text(min_size=1, max_size=300)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(st.dictionaries(keys, leaves | st.lists(leaves, max_size=3), min_size=1, max_size=4))
def test_mlflow_accepts_every_parameter_name(value: dict) -> None:
    for key, text in flat_params(value).items():
        assert _validate_param(key, text) == Param(key, text)


@given(keys)
def test_mlflow_accepts_every_metric_name(name: str) -> None:
    _validate_metric(clean_key(name), 1.0, 0, 0)
    assert isinstance(Metric(clean_key(name), 1.0, 0, 0), Metric)


def test_names_keep_what_mlflow_can_store() -> None:
    assert clean_key("val/R@1 (行人)") == "val/R_at_1 _行人_"


def test_a_metrics_table_names_its_numbers_by_the_columns_it_has() -> None:
    table = pd.DataFrame(
        [
            ("val", "vehicle", "t2i", "map_at_10", 0.5, 0.4, 0.6, 12),
            ("val", None, "i2t", "mean_rank", 3.0, math.nan, math.inf, 12),
            ("dev", "all", "t2i", "r_at_1", math.nan, math.nan, math.nan, 12),
        ],
        columns=["split", "group", "direction", "metric", "value", "low", "high", "queries"],
    )
    assert metrics_of(table) == {
        "val.vehicle.t2i.map_at_10": 0.5,
        "val.vehicle.t2i.map_at_10_low": 0.4,
        "val.vehicle.t2i.map_at_10_high": 0.6,
        "val.i2t.mean_rank": 3.0,
    }
    assert metrics_of(table[["metric", "value"]]) == {"map_at_10": 0.5, "mean_rank": 3.0}
    assert metrics_of(table.iloc[:0]) == {}


def test_rows_that_would_overwrite_each_other_are_an_error() -> None:
    table = pd.DataFrame({"metric": ["a", "a"], "value": [1.0, 2.0], "fold": [0, 1]})
    with pytest.raises(ValueError, match="two rows of the metrics table are called a"):
        metrics_of(table)


def test_a_mapping_gives_its_finite_numbers() -> None:
    data = {"r": {"1": 0.5, "5": 1}, "name": "x", "ok": True, "nan": math.nan, "many": [1, 2]}
    assert metrics_of(data) == {"r.1": 0.5, "r.5": 1.0}


@pytest.mark.parametrize("data", [pd.DataFrame({"value": [1.0]}), [1.0], "0.5", None])
def test_other_data_has_no_metrics(data: object) -> None:
    with pytest.raises(TypeError, match="columns metric and value"):
        metrics_of(data)
