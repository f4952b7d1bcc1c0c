"""ensemble: weights from dev -> rank and match dev, val and test -> judge -> submission and leaderboard."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.ensemble import nodes


def create_pipeline(members: list[str]) -> Pipeline:
    """Build the ensemble of these members; alone, it works on what lies in the catalog."""
    embeddings = [f"{member}.{side}_embeddings" for member in members for side in ("image", "text")]
    options = ["params:relevance", "params:ensemble"]
    return Pipeline(
        [
            Node(nodes.choose_fusion, ["captions", *options, *embeddings], "fusion", name="choose_fusion"),
            Node(
                nodes.rank_ensemble,
                ["captions", "fusion", *options, *embeddings],
                ["ranking", "matching"],
                name="rank_ensemble",
            ),
            Node(
                nodes.judge_ensemble,
                ["captions", "fusion", *options, "params:evaluation", *embeddings],
                ["ensemble_metrics", "comparison", "rank_histogram", "leaderboard", "leaderboard_figure"],
                name="judge_ensemble",
            ),
            Node(
                nodes.write_submission,
                ["pairs", "ranking", "matching", "params:ensemble"],
                ["submission", "matching_submission"],
                name="write_submission",
            ),
        ],
        tags="ensemble",
    )
