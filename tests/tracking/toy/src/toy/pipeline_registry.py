from kedro.pipeline import Node, Pipeline

from toy import nodes


def register_pipelines() -> dict[str, Pipeline]:
    make = Pipeline([Node(nodes.make_pairs, "params:seed", "pairs", name="make_pairs")])
    member = Pipeline(
        [
            Node(nodes.train, ["pairs", "params:train", "params:behaviour"], "checkpoint", name="train"),
            Node(nodes.embed, ["checkpoint", "params:behaviour"], "embeddings", name="embed"),
            Node(nodes.evaluate, ["embeddings", "pairs"], "metrics", name="evaluate"),
        ]
    )
    members = sum(
        (
            Pipeline(member, namespace=name, inputs={"pairs"}, parameters={"params:behaviour"})
            for name in ("clip_a", "clip_b")
        ),
        Pipeline([]),
    )
    ensemble = Pipeline(
        [
            Node(
                nodes.ensemble,
                ["clip_a.embeddings", "clip_b.embeddings", "params:behaviour"],
                "ensemble_metrics",
                name="ensemble",
            )
        ]
    )
    broken = Pipeline([Node(nodes.embed, ["absent", "params:behaviour"], "embeddings", name="embed")])
    broken = Pipeline(broken, namespace="clip_a", parameters={"params:behaviour"})
    odd = Pipeline([Node(nodes.make_pairs, "params:seed", "odd", name="make_odd")])
    return {
        "broken": broken,
        "odd": odd,
        "__default__": make + members + ensemble,
        "train": make + members,
        "ensemble": ensemble,
    }
