"""The registered pipelines; members come from the active recipe, and nothing heavy is imported."""

from typing import Any

from kedro.pipeline import Pipeline

from xmodal_kedro.config_loader import active_parameters
from xmodal_kedro.pipelines.data_processing.pipeline import create_pipeline as data_processing
from xmodal_kedro.pipelines.ensemble.pipeline import create_pipeline as ensemble
from xmodal_kedro.pipelines.evaluate.pipeline import create_pipeline as evaluate
from xmodal_kedro.pipelines.predict.pipeline import create_pipeline as predict
from xmodal_kedro.pipelines.train.pipeline import create_pipeline as train


def register_pipelines() -> dict[str, Pipeline]:
    """Build every pipeline for the members of the active recipe."""
    parameters = active_parameters()
    members = parameters.get("member_names") or []
    reranker = ((parameters.get("ensemble") or {}).get("rerank") or {}).get("member")
    completing = (parameters.get("completion") or {}).get("member")
    stages = {
        "data_processing": data_processing(synthetic=parameters.get("synthetic") is not None, completing=completing),
        "train": sum((_train(member, parameters) for member in members), Pipeline([])),
        "evaluate": sum((evaluate(member) for member in members), Pipeline([])),
        "ensemble": ensemble(members, reranker),
    }
    main_job = sum(stages.values(), Pipeline([]))
    return {"__default__": main_job, **stages, "predict": predict(members, reranker)}


def _train(member: str, parameters: dict[str, Any]) -> Pipeline:
    own_prompts = (parameters.get(member) or {}).get("prompts") is not None
    return train(member, own_prompts=own_prompts, completing=parameters.get("completion") is not None)
