"""predict: the nodes of the other pipelines over new data, with the checkpoints and fusion of the catalog."""

from collections.abc import Collection, Mapping
from typing import Any

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.caption import nodes as caption
from xmodal_kedro.pipelines.caption.pipeline import captioner_inputs
from xmodal_kedro.pipelines.data_processing import nodes as data
from xmodal_kedro.pipelines.ensemble import nodes as ensemble
from xmodal_kedro.pipelines.ensemble.pipeline import embedding_inputs
from xmodal_kedro.pipelines.evaluate import nodes as evaluate

SHARED_PARAMETERS = ["params:ensemble", "params:runtime"]


def create_pipeline(
    members: list[str],
    reranker: str | None = None,
    banked: Collection[str] = (),
    captioners: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    looking: bool = True,
    ranking: bool = True,
) -> Pipeline:
    """Build the prediction by these members, with re-ranking by one of them where there is a `reranker`.

    The `banked` members' scores are normalised with the bank of train that lies with their embeddings. Captioners, by
    name to their parameters, caption the new images together; without `ranking` that is all.
    """
    embeddings = embedding_inputs(members, "{}.predict_{}_embeddings")
    mixed = {
        **{"captions": "predict_captions", "fusion": "fusion"},
        **{"relevance": "params:relevance", "ensemble": "params:ensemble"},
    }
    reranking = {"reranking": "predict_reranking"} if reranker else {}
    looked = {"images": "predict_images", "checkpoint": f"{reranker}.checkpoint"} if looking else {}
    read = Pipeline(
        [
            Node(
                data.read_new_data,
                ["params:predict", "params:data"],
                ["predict_raw_pairs", "predict_row_quarantine"],
                name="read_new_data",
            ),
            Node(
                data.pack_images,
                ["predict_raw_pairs", "predict_row_quarantine", "params:predict", "params:images"],
                ["predict_images", "predict_image_quarantine"],
                name="pack_new_images",
            ),
            Node(
                data.clean_queries,
                [
                    *("predict_raw_pairs", "predict_row_quarantine", "predict_image_quarantine"),
                    *("params:predict", "params:prompts", *(["captions"] if ranking else [])),
                ],
                ["predict_captions", "predict_quarantine"],
                name="clean_new_data",
            ),
        ]
    )
    rerank = Node(
        ensemble.rerank_ensemble,
        {**mixed, "runtime": "params:runtime", **looked, **embeddings},
        "predict_reranking",
        name="rerank_new_data",
    )
    rank = Pipeline(
        [
            *([rerank] if reranker else []),
            Node(
                ensemble.rank_ensemble,
                {**mixed, "calibration": "calibration", **reranking, **embeddings},
                ["predict_ranking", "predict_matching"],
                name="rank_new_data",
            ),
            Node(
                ensemble.write_predictions,
                ["predict_raw_pairs", "predict_ranking", "predict_matching", "params:ensemble", "params:predict"],
                ["predict_submission", "predict_matching_submission"],
                name="write_predictions",
            ),
        ]
    )
    embed = [node for name in members for node in _embed(name, name in banked).nodes]
    ranked = [*embed, *rank.nodes] if ranking else []
    return Pipeline([*read.nodes, *ranked, *_write_captions(captioners or {})], tags="predict")


def _write_captions(captioners: Mapping[str, Mapping[str, Any]]) -> list[Node]:
    if not captioners:
        return []
    return [
        Node(
            caption.decode_ensemble,
            {
                **{"captions": "predict_captions", "images": "predict_images", "captioning": "params:captioning"},
                **{"runtime": "params:runtime", **captioner_inputs(captioners)},
            },
            "predict_generated",
            name="caption_new_data",
            tags="caption",
        ),
        Node(
            caption.write_new_captions,
            ["predict_generated", "predict_captions"],
            "predict_captions_submission",
            name="write_new_captions",
            tags="caption",
        ),
    ]


def _embed(member: str, banked: bool) -> Pipeline:
    # Kedro reads the types of parameters by their place: they come in the order of the node's arguments.
    inputs = {
        **{"checkpoint": "checkpoint", "captions": "predict_captions", "images": "predict_images"},
        **{"member": "params:member", "runtime": "params:runtime", "ensemble": "params:ensemble"},
    }
    saved = {name: name for name in ("image_embeddings", "text_embeddings")} if banked else {}
    return Pipeline(
        [
            Node(
                evaluate.embed_member,
                {**inputs, **saved},
                ["predict_image_embeddings", "predict_text_embeddings"],
                name="embed_new_data",
            )
        ],
        namespace=member,
        inputs={"predict_captions", "predict_images"},
        parameters={"params:member": f"params:{member}"} | {name: name for name in SHARED_PARAMETERS},
        tags=member,
    )
