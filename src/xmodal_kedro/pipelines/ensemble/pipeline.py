"""ensemble: search weights on dev -> rank and match dev, val and test -> submission and leaderboard."""

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.ensemble import nodes


def create_pipeline(members: list[str]) -> Pipeline:
    """Build the ensemble of these members; alone, it works on what lies in the catalog."""
    embeddings = [f"{member}.{side}_embeddings" for member in members for side in ("image", "text")]
    return Pipeline(
        [
            Node(
                nodes.search_fusion,
                ["captions", "params:relevance", "params:ensemble", *embeddings],
                "fusion",
            ),
            Node(
                nodes.rank_ensemble,
                ["captions", "fusion", "params:relevance", "params:ensemble", "params:evaluation", *embeddings],
                ["ranking", "ensemble_metrics", "comparison"],
            ),
            Node(
                nodes.match_ensemble,
                ["captions", "fusion", "params:relevance", "params:ensemble", *embeddings],
                ["matching", "matching_metrics"],
            ),
            Node(
                nodes.write_submission,
                ["captions", "ranking", "matching", "params:ensemble"],
                ["submission", "matching_submission"],
            ),
            Node(
                nodes.make_leaderboard,
                ["ensemble_metrics", *(f"{member}.metrics" for member in members)],
                ["leaderboard", "leaderboard_figure"],
            ),
        ],
        tags="ensemble",
    )
