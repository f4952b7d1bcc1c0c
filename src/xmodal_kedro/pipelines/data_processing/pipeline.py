"""data_processing: [draw] -> read -> pack -> clean -> [complete attributes] -> captions."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.data_processing import nodes


def create_pipeline(*, synthetic: bool, completing: str | None = None) -> Pipeline:
    """Build the pipeline.

    Args:
        synthetic: Whether the recipe draws its own data first.
        completing: The member whose un-tuned model completes attributes, if the recipe wants that.
    """
    drawn = (
        [Node(nodes.draw_synthetic_traffic, "params:synthetic", "synthetic_traffic", name="draw_synthetic_traffic")]
        if synthetic
        else []
    )
    complete = [
        Node(
            nodes.complete_attributes,
            ["pairs", "images", "params:prompts", "params:completion", f"params:{completing}", "params:runtime"],
            "completed_attributes",
            name="complete_attributes",
        )
    ]
    completed = ["completed_attributes"] if completing else []
    read_inputs = ["params:data", "synthetic_traffic"] if synthetic else "params:data"
    return Pipeline(
        [
            *drawn,
            Node(nodes.read_pairs, read_inputs, ["raw_pairs", "row_quarantine"], name="read_pairs"),
            Node(
                nodes.pack_images,
                ["raw_pairs", "row_quarantine", "params:data", "params:images"],
                ["images", "image_quarantine"],
                name="pack_images",
            ),
            Node(
                nodes.clean_pairs,
                ["raw_pairs", "row_quarantine", "image_quarantine", "images", "params:data"],
                ["pairs", "quarantine"],
                name="clean_pairs",
            ),
            *(complete if completing else []),
            Node(
                nodes.make_captions,
                ["pairs", "params:prompts", "params:relevance", *completed],
                "captions",
                name="make_captions",
            ),
        ],
        tags="data_processing",
    )
