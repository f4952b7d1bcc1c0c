"""evaluate: embed and judge one member; instantiated once per member of the recipe as a namespace."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.evaluate import nodes

SHARED_PARAMETERS = ["params:ensemble", "params:evaluation", "params:prompts", "params:relevance", "params:runtime"]


def create_pipeline(member: str) -> Pipeline:
    """Build the encoding and the evaluation of one member."""
    return Pipeline(
        [
            Node(
                nodes.embed_member,
                ["checkpoint", "captions", "images", "params:member", "params:runtime", "params:ensemble"],
                ["image_embeddings", "text_embeddings"],
                name="embed_member",
            ),
            Node(
                nodes.evaluate_member,
                [
                    *("image_embeddings", "text_embeddings", "captions"),
                    *("params:relevance", "params:evaluation", "params:prompts"),
                ],
                ["metrics", "attribute_metrics"],
                name="evaluate_member",
            ),
        ],
        namespace=member,
        inputs={"captions", "images"},
        parameters={"params:member": f"params:{member}"} | {name: name for name in SHARED_PARAMETERS},
        tags=["evaluate", member],
    )
