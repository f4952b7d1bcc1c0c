"""The index of a member: what flows in and out, the catalog's dataset, and recall in the metrics."""

from __future__ import annotations

import numpy as np
import pytest
from kedro.io import DatasetError, Version
from kedro.validation.type_extractor import TypeExtractor

from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.datasets.index import IndexDataset
from xmodal_kedro.pipelines.index.nodes import index_member
from xmodal_kedro.pipelines.index.pipeline import create_pipeline
from xmodal_kedro.retrieval.embeddings import Embeddings, OtherOriginError
from xmodal_kedro.retrieval.search import ExactIndex, FaissIndex
from xmodal_kedro.tracking.records import metrics_of


def embeddings(side: str, n: int, weights: str = "w") -> Embeddings:
    vectors = np.random.default_rng(n).standard_normal((n, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    meta = {"member": "vit", "side": side, "fingerprints": {"weights": weights, "transform": "t"}}
    return Embeddings(np.array([f"{side}{row}" for row in range(n)]), vectors.astype(np.float32), meta)


def test_the_pipeline_reads_embeddings_of_its_member_and_the_shared_config() -> None:
    (node,) = create_pipeline("vit").nodes
    assert node.inputs == ["vit.image_embeddings", "vit.text_embeddings", "params:index"]
    assert node.outputs == ["vit.index", "vit.index_metrics"]
    assert TypeExtractor({})._extract_types_from_node(node) == {"index": IndexConfig}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (IndexConfig(), ExactIndex),
        (IndexConfig(kind="flat"), FaissIndex),
        (IndexConfig(kind="ivf", lists=10, probes=1, k=5), FaissIndex),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_an_index_is_built_measured_saved_and_opened(tmp_path, monkeypatch, config, kind) -> None:
    monkeypatch.setattr("xmodal_kedro.datasets.directory.project_path", lambda: tmp_path)
    images, texts = embeddings("image", 500), embeddings("text", 60)
    directory, metrics = index_member(images, texts, config)
    found = metrics_of(metrics)
    assert found["rows"] == 500
    assert ("recall_at_5" in found, "recall_at_10" in found) == (config.kind == "ivf", config.kind == "flat")
    assert found.get("recall_at_10", 1.0) == 1.0
    assert found.get("recall_at_5", 0.5) < 1.0
    dataset = IndexDataset(filepath=str(tmp_path / "index"), version=Version(None, "2026-01-01T00.00.00.000Z"))
    with pytest.raises(DatasetError):
        dataset.load()
    dataset.save(directory)
    loaded = IndexDataset(filepath=str(tmp_path / "index"), version=Version(None, None)).load()
    assert isinstance(loaded, kind)
    assert loaded.ids.tolist() == images.ids.tolist()
    assert loaded.search(texts.matrix, 3).rows.shape == (60, 3)


def test_texts_of_other_weights_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("xmodal_kedro.datasets.directory.project_path", lambda: tmp_path)
    with pytest.raises(OtherOriginError, match="weights"):
        index_member(embeddings("image", 5), embeddings("text", 5, weights="other"), IndexConfig())


def test_no_texts_are_no_queries(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("xmodal_kedro.datasets.directory.project_path", lambda: tmp_path)
    _, metrics = index_member(embeddings("image", 5), embeddings("text", 0), IndexConfig(kind="flat"))
    assert metrics["metric"].tolist() == ["rows"]
