"""Evaluate judges a member as a whole and per attribute, from parameters that reach it as the configs they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog
from kedro.validation.type_extractor import TypeExtractor

from tests.conftest import REPOSITORY
from xmodal_kedro.config.data import PromptsConfig, RelevanceConfig
from xmodal_kedro.config.ensemble import EvaluationConfig
from xmodal_kedro.data.tables import table_fingerprint
from xmodal_kedro.pipelines.evaluate.nodes import evaluate_member
from xmodal_kedro.pipelines.evaluate.pipeline import create_pipeline as evaluate
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.judge import ATTRIBUTE_COLUMNS

CONFIGS = {
    "relevance": "RelevanceConfig",
    "ensemble": "EnsembleConfig",
    "evaluation": "EvaluationConfig",
    "prompts": "PromptsConfig",
    "runtime": "RuntimeConfig",
    "vit": "MemberConfig",
}
COUNT = 50


def captions(attributes: list[str | None]) -> pd.DataFrame:
    """Pairs of val and train; the attributes in turn."""
    rows = [
        {"image_id": f"{split}{n}.jpg", "text_id": f"{split}{n}.txt", "text": f"text {n}", "group": "vehicle"}
        | {"attributes": attributes[n % len(attributes)], "split": split, "row": n, "source": split}
        for split in ("train", "val")
        for n in range(COUNT)
    ]
    return pd.DataFrame(rows)


def judged(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the node says of a member that puts every text near its image, but those of odd rows."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(COUNT, 8))
    texts = np.where(np.arange(COUNT)[:, None] % 2, rng.normal(size=images.shape), images)
    sides = []
    for side, matrix in (("image", images), ("text", texts)):
        unit = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
        ids = table.loc[table["split"] == "val", f"{side}_id"].tolist()
        meta = {"member": "vit", "side": side, "fingerprints": {"captions": table_fingerprint(table)}}
        sides.append(Embeddings(ids, unit, meta))
    return evaluate_member(*sides, table, RelevanceConfig(), EvaluationConfig(bootstrap=20), PromptsConfig())


def test_parameters_arrive_as_configs() -> None:
    for node in evaluate("vit").nodes:
        types = TypeExtractor({})._extract_types_from_node(node)
        wanted = {source.removeprefix("params:") for source in node.inputs if source.startswith("params:")}
        assert {name: found.__name__ for name, found in types.items()} == {name: CONFIGS[name] for name in wanted}


def test_a_member_is_judged_as_a_whole_and_per_attribute() -> None:
    metrics, by_attribute = judged(captions(["A white Audi.", "A red Audi."]))
    whole = metrics.query("direction == 't2i' and metric == 'recall_at_1'").iloc[0]
    rows = by_attribute.query("metric == 'recall_at_1'").set_index(["attribute", "label"])
    assert set(rows.index) == {("color", "white"), ("color", "red"), ("brand", "Audi")}
    assert rows.loc[("color", "white"), "value"] == 1.0
    assert rows.loc[("color", "red"), "value"] < 0.5
    assert rows.loc[("brand", "Audi"), "value"] == whole["value"]
    assert rows["n_queries"].to_dict() == {("brand", "Audi"): 50, ("color", "white"): 25, ("color", "red"): 25}
    assert set(rows["n_gallery"]) == {COUNT}


@pytest.mark.parametrize("attributes", [[None], ["A white Audi.", None, None, None, None]])
def test_without_attributes_or_with_few_the_table_has_no_rows_and_can_be_saved(
    attributes: list[str | None], tmp_path: Path
) -> None:
    metrics, by_attribute = judged(captions(attributes))
    assert len(metrics) > 0
    assert len(by_attribute) == 0
    entry = yaml.safe_load((REPOSITORY / "conf/base/catalog_members.yml").read_text())["{member}.attribute_metrics"]
    entry |= {"filepath": str(tmp_path / "attribute_metrics.csv"), "versioned": False}
    catalog = DataCatalog.from_config({"table": entry})
    catalog.save("table", by_attribute)
    assert list(catalog.load("table").columns) == ATTRIBUTE_COLUMNS
