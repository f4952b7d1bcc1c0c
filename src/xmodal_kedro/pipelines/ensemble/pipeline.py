"""ensemble: weights from dev -> re-rank -> calibrate -> rank and match -> judge -> submission and leaderboard."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.ensemble import nodes


def create_pipeline(members: list[str], reranker: str | None = None, *, looking: bool = True) -> Pipeline:
    """Build the ensemble of these members; alone, it works on what lies in the catalog.

    Args:
        members: Whose scores are mixed.
        reranker: The member that re-ranks; without one there is no such node.
        looking: Whether it does so by its checkpoint and the pixels (`RerankConfig.looks`), not by embeddings alone.
    """
    embeddings = embedding_inputs(members, "{}.{}_embeddings")
    # Kedro reads the types of parameters by their place: they come in the order of the node's arguments.
    mixed = {"captions": "captions", "fusion": "fusion", "relevance": "params:relevance", "ensemble": "params:ensemble"}
    reranking = {"reranking": "reranking"} if reranker else {}
    looked = {"images": "images", "checkpoint": f"{reranker}.checkpoint"} if looking else {}
    rerank = [
        Node(
            nodes.rerank_ensemble,
            {**mixed, "runtime": "params:runtime", **looked, **embeddings},
            "reranking",
            name="rerank_ensemble",
        )
    ]
    return Pipeline(
        [
            Node(
                nodes.choose_fusion,
                {name: source for name, source in mixed.items() if name != "fusion"} | embeddings,
                "fusion",
                name="choose_fusion",
            ),
            *(rerank if reranker else []),
            Node(
                nodes.calibrate_ensemble,
                {**mixed, **reranking, **embeddings},
                ["calibration", "calibration_figure"],
                name="calibrate_ensemble",
            ),
            Node(
                nodes.rank_ensemble,
                {**mixed, "calibration": "calibration", **reranking, **embeddings},
                ["ranking", "matching"],
                name="rank_ensemble",
            ),
            Node(
                nodes.judge_ensemble,
                {**mixed, "evaluation": "params:evaluation", **reranking, **embeddings},
                [
                    *("ensemble_metrics", "recall_table", "comparison", "rank_histogram"),
                    *("leaderboard", "leaderboard_figure"),
                ],
                name="judge_ensemble",
            ),
            Node(
                nodes.write_submission,
                ["pairs", "ranking", "matching", "params:ensemble", "params:data"],
                ["submission", "matching_submission"],
                name="write_submission",
            ),
        ],
        tags="ensemble",
    )


def embedding_inputs(members: list[str], dataset: str) -> dict[str, str]:
    """Keyword and dataset of both sides of each member; `dataset` has a place for the member and one for the side."""
    return {
        f"{member}_{side}_embeddings": dataset.format(member, side) for member in members for side in ("image", "text")
    }
