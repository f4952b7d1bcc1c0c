"""caption: train each captioner -> decode -> judge, each as a namespace; then all of them together."""

from collections.abc import Mapping
from typing import Any

from kedro.pipeline import Node, Pipeline

from xmodal_kedro.pipelines.caption import nodes

SHARED_PARAMETERS = ["params:captioning", "params:evaluation", "params:runtime"]


def create_pipeline(captioners: Mapping[str, Mapping[str, Any]], clip_score: str | None = None) -> Pipeline:
    """Build the captioning of a recipe; empty without captioners.

    Args:
        captioners: Name to its mapping in the parameters; those that begin with a `member` are trained.
        clip_score: The member whose checkpoint gives CLIPScore, if one does.
    """
    if not captioners:
        return Pipeline([])
    single = [_captioner(name, captioner.get("member"), clip_score) for name, captioner in captioners.items()]
    return Pipeline([*(node for pipeline in single for node in pipeline.nodes), *_together(captioners, clip_score)])


def _captioner(name: str, member: str | None, clip_score: str | None) -> Pipeline:
    """One captioner, from its member's checkpoint (or weights of its own) to metrics."""
    train = [
        Node(
            nodes.train_captioner,
            [
                *(f"{member}.checkpoint", "captions", "images"),
                *("params:captioner", "params:captioning", "params:runtime"),
            ],
            ["captioner", "history"],
            name="train_captioner",
        ),
        Node(nodes.plot_history, "history", "training_curves", name="plot_history"),
    ]
    checkpoints = {f"{one}.checkpoint" for one in (member, clip_score) if one is not None}
    return Pipeline(
        [
            *(train if member is not None else []),
            Node(
                nodes.decode_captions,
                {
                    **{"captions": "captions", "images": "images", "captioning": "params:captioning"},
                    **{"runtime": "params:runtime", "captioner": _source(member)},
                },
                "generated",
                name="decode_captions",
            ),
            Node(
                nodes.judge_captions,
                {
                    **{"generated": "generated", "captions": "captions", "images": "images"},
                    **{"captioning": "params:captioning", "evaluation": "params:evaluation"},
                    **{"runtime": "params:runtime", **_clip(clip_score)},
                },
                ["metrics", "caption_scores"],
                name="judge_captions",
            ),
        ],
        namespace=name,
        inputs={"captions", "images", *checkpoints},
        parameters={"params:captioner": f"params:{name}"} | {shared: shared for shared in SHARED_PARAMETERS},
        tags=["caption", name],
    )


def _together(captioners: Mapping[str, Mapping[str, Any]], clip_score: str | None) -> list[Node]:
    """What is done with all captioners: an ensemble where there are several, the leaderboard, the files."""
    generated = {f"{name}_generated": f"{name}.generated" for name in captioners}
    submissions = ["captions_submission"]
    ensemble = []
    if len(captioners) > 1:
        ensemble = [
            Node(
                nodes.decode_ensemble,
                {
                    **{"captions": "captions", "images": "images", "captioning": "params:captioning"},
                    **{"runtime": "params:runtime", **captioner_inputs(captioners)},
                },
                "ensemble_generated",
                name="decode_ensemble",
                tags="caption",
            )
        ]
        generated["ensemble_generated"] = "ensemble_generated"
        submissions.append("ensemble_captions_submission")
    return [
        *ensemble,
        Node(
            nodes.compare_captions,
            {
                **{"captions": "captions", "images": "images", "captioning": "params:captioning"},
                **{"evaluation": "params:evaluation", "runtime": "params:runtime"},
                **{**_clip(clip_score), **generated},
            },
            ["caption_metrics", "caption_leaderboard", "caption_comparison", "caption_table", "caption_sheet"],
            name="compare_captions",
            tags="caption",
        ),
        Node(
            nodes.plot_captions,
            ["caption_leaderboard", "params:captioning"],
            "caption_figure",
            name="plot_captions",
            tags="caption",
        ),
        Node(
            nodes.write_captions,
            {
                **{"captions": "captions", "captioning": "params:captioning"},
                **{"metrics": "caption_leaderboard", **generated},
            },
            submissions if len(captioners) > 1 else submissions[0],
            name="write_captions",
            tags="caption",
        ),
    ]


def captioner_inputs(captioners: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Keyword and dataset or parameters of each captioner, by which a node decodes with all of them."""
    return {
        f"{name}_captioner": f"{name}.captioner" if captioner.get("member") is not None else f"params:{name}"
        for name, captioner in captioners.items()
    }


def _source(member: str | None) -> str:
    """What a captioner is opened from: its trained checkpoint, or its parameters, which name weights."""
    return "params:captioner" if member is None else "captioner"


def _clip(member: str | None) -> dict[str, str]:
    return {} if member is None else {"clip": f"{member}.checkpoint"}
