"""train: one member; instantiated once per member of the recipe as a namespace."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.train import nodes

SHARED_PARAMETERS = ["params:evaluation", "params:relevance", "params:runtime"]


def create_pipeline(member: str, *, own_prompts: bool = False, completing: bool = False) -> Pipeline:
    """Build the training of one member.

    Args:
        member: Its name.
        own_prompts: Whether it has prompts of its own: then it trains on captions made by them.
        completing: Whether the recipe completes attributes, which then fill those prompts too.
    """
    shared, parameters, own = {"captions", "images"}, list(SHARED_PARAMETERS), []
    if own_prompts:
        completed = ["completed_attributes"] if completing else []
        shared |= {"pairs", *completed}
        parameters.append("params:prompts")
        own.append(
            Node(
                nodes.make_train_captions,
                ["pairs", "captions", "params:prompts", "params:member", *completed],
                "train_captions",
                name="make_train_captions",
            )
        )
    train_inputs = ["captions", "images", "params:member", *SHARED_PARAMETERS]
    return Pipeline(
        [
            *own,
            Node(
                nodes.train_member,
                [*train_inputs, "train_captions"] if own else train_inputs,
                ["checkpoint", "history"],
                name="train_member",
            ),
            Node(nodes.plot_history, "history", "training_curves", name="plot_history"),
        ],
        namespace=member,
        inputs=shared,
        parameters={"params:member": f"params:{member}"} | {name: name for name in parameters},
        tags=["train", member],
    )
