"""The registered pipelines; members come from the active recipe, and nothing heavy is imported."""

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
    stages = {
        "data_processing": data_processing(synthetic=parameters.get("synthetic") is not None),
        "train": sum((train(member) for member in members), Pipeline([])),
        "evaluate": sum((evaluate(member) for member in members), Pipeline([])),
        "ensemble": ensemble(members),
    }
    main_job = sum(stages.values(), Pipeline([]))
    return {"__default__": main_job, **stages, "predict": predict(members)}
