"""Which nodes an ensemble has, what flows into them, and that parameters reach them as the configs they are."""

from __future__ import annotations

import pytest
from kedro.validation.type_extractor import TypeExtractor

from xmodal_kedro.pipelines.ensemble.pipeline import create_pipeline as ensemble
from xmodal_kedro.pipelines.predict.pipeline import create_pipeline as predict

CONFIGS = {
    "relevance": "RelevanceConfig",
    "ensemble": "EnsembleConfig",
    "evaluation": "EvaluationConfig",
    "runtime": "RuntimeConfig",
}


@pytest.mark.parametrize("reranker", [None, "b"])
@pytest.mark.parametrize("build", [ensemble, predict])
def test_parameters_arrive_as_configs(build, reranker: str | None) -> None:
    pipeline = build(["a", "b"], reranker)
    for node in pipeline.nodes:
        types = TypeExtractor({})._extract_types_from_node(node)
        wanted = {source.removeprefix("params:") for source in node.inputs if source.startswith("params:")}
        assert set(types) == wanted, node.name
        for name in wanted & CONFIGS.keys():
            assert types[name].__name__ == CONFIGS[name], node.name


@pytest.mark.parametrize(("build", "prefix"), [(ensemble, ""), (predict, "predict_")])
def test_members_flow_into_one_re_ranking_that_everything_after_it_reads(build, prefix: str) -> None:
    nodes = {node.name: node for node in build(["a", "b"], "b").nodes}
    (rerank,) = (node for name, node in nodes.items() if name.startswith("rerank"))
    sides = {f"{member}.{prefix}{side}_embeddings" for member in "ab" for side in ("image", "text")}
    assert sides | {"b.checkpoint", f"{prefix}images", f"{prefix}captions", "fusion"} <= set(rerank.inputs)
    assert rerank.outputs == [f"{prefix}reranking"]
    readers = {name for name, node in nodes.items() if f"{prefix}reranking" in node.inputs}
    assert readers == ({"rank_new_data"} if prefix else {"calibrate_ensemble", "rank_ensemble", "judge_ensemble"})


@pytest.mark.parametrize(("build", "prefix"), [(ensemble, ""), (predict, "predict_")])
def test_a_re_ranking_by_embeddings_asks_for_neither_checkpoint_nor_pixels(build, prefix: str) -> None:
    (rerank,) = (node for node in build(["a", "b"], "b", looking=False).nodes if node.name.startswith("rerank"))
    assert not {"b.checkpoint", f"{prefix}images"} & set(rerank.inputs)
    assert f"b.{prefix}text_embeddings" in rerank.inputs


@pytest.mark.parametrize("build", [ensemble, predict])
def test_rankings_get_their_probabilities_from_the_calibration_of_the_ensemble(build) -> None:
    (rank,) = (node for node in build(["a", "b"]).nodes if node.name in ("rank_ensemble", "rank_new_data"))
    assert "calibration" in rank.inputs


@pytest.mark.parametrize("build", [ensemble, predict])
def test_without_a_reranker_nothing_of_it_is_there(build) -> None:
    pipeline = build(["a", "b"])
    assert not [name for name in pipeline.datasets() if "reranking" in name]
