"""train: one member; instantiated once per member of the recipe as a namespace."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.train import nodes

SHARED_PARAMETERS = ["params:evaluation", "params:relevance", "params:runtime"]


def create_pipeline(member: str) -> Pipeline:
    """Build the training of one member."""
    return Pipeline(
        [
            Node(
                nodes.train_member,
                ["captions", "images", "params:member", *SHARED_PARAMETERS],
                ["checkpoint", "history"],
                name="train_member",
            ),
            Node(nodes.plot_history, "history", "training_curves", name="plot_history"),
        ],
        namespace=member,
        inputs={"captions", "images"},
        parameters={"params:member": f"params:{member}"} | {name: name for name in SHARED_PARAMETERS},
        tags=["train", member],
    )
