"""The registered pipelines; members come from the active recipe, and nothing heavy is imported."""

from typing import Any

from kedro.pipeline import Pipeline

from xmodal_kedro.config.ensemble import BANKED, RerankConfig
from xmodal_kedro.config_loader import active_parameters
from xmodal_kedro.pipelines.caption.pipeline import create_pipeline as caption
from xmodal_kedro.pipelines.data_processing.pipeline import create_pipeline as data_processing
from xmodal_kedro.pipelines.ensemble.pipeline import create_pipeline as ensemble
from xmodal_kedro.pipelines.evaluate.pipeline import create_pipeline as evaluate
from xmodal_kedro.pipelines.index.pipeline import create_pipeline as index
from xmodal_kedro.pipelines.predict.pipeline import create_pipeline as predict
from xmodal_kedro.pipelines.train.pipeline import create_pipeline as train


def register_pipelines() -> dict[str, Pipeline]:
    """Build every pipeline for the members of the active recipe."""
    parameters = active_parameters()
    members = parameters.get("member_names") or []
    rerank = (parameters.get("ensemble") or {}).get("rerank") or {}
    reranker = rerank.get("member")
    # Not validated here: the hook does that, with messages for users.
    looking = RerankConfig.model_construct(**{"method": "itm", **rerank}).looks
    completing = (parameters.get("completion") or {}).get("member")
    captioners = {name: parameters.get(name) or {} for name in parameters.get("captioner_names") or []}
    stages = {
        "data_processing": data_processing(synthetic=parameters.get("synthetic") is not None, completing=completing),
        "train": sum((_train(member, parameters) for member in members), Pipeline([])),
        "evaluate": sum((evaluate(member) for member in members), Pipeline([])),
        "ensemble": ensemble(members, reranker, looking=looking),
        "caption": caption(captioners, (parameters.get("captioning") or {}).get("clip_score")),
    }
    main_job = sum(stages.values(), Pipeline([]))
    return {
        "__default__": main_job,
        **stages,
        "index": sum((index(member) for member in members), Pipeline([])),
        "predict": predict(
            *(members, reranker, _banked(members, parameters), captioners),
            looking=looking,
            ranking=not captioners or _has_queries(parameters.get("predict") or {}),
        ),
    }


def _train(member: str, parameters: dict[str, Any]) -> Pipeline:
    own_prompts = (parameters.get(member) or {}).get("prompts") is not None
    return train(member, own_prompts=own_prompts, completing=parameters.get("completion") is not None)


def _has_queries(data: dict[str, Any]) -> bool:
    """Whether a source names texts; a plain folder of photos is there to be captioned."""
    return any(
        source.get("file") is not None and (source.get("columns") or {}).get("text", "text") is not None
        for source in data.get("sources") or []
    )


def _banked(members: list[str], parameters: dict[str, Any]) -> list[str]:
    """Members whose scores are normalised with a bank of train."""
    fusion = (parameters.get("ensemble") or {}).get("fusion") or {}
    own, shared = fusion.get("normalisations") or {}, fusion.get("normalisation")
    return [member for member in members if own.get(member, shared) in BANKED]
