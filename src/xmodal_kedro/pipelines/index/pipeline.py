"""index: make the images of one member searchable; instantiated once per member of the recipe as a namespace."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.index import nodes


def create_pipeline(member: str) -> Pipeline:
    """Build the indexing of one member."""
    return Pipeline(
        [
            Node(
                nodes.index_member,
                ["image_embeddings", "text_embeddings", "params:index"],
                ["index", "index_metrics"],
                name="index_member",
            )
        ],
        namespace=member,
        inputs={"image_embeddings": f"{member}.image_embeddings", "text_embeddings": f"{member}.text_embeddings"},
        parameters={"params:index": "params:index"},
        tags=["index", member],
    )
