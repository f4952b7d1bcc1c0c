"""The first candidates of every query in the order of a second stage; nobody leaves them, and nobody joins them.

The first stage ranks the whole gallery by fused scores. The second looks at the best `top_k` of each query again, which
the first place of CVPR 2023 track 2 published in a way that could not work: the number of candidates was overwritten by
the rank of the process, 0, so that nothing was re-ranked; and where it is not, adding logits around +-0.3 to fused
scores around 0.0075 drops candidates with negative logits below images that were never looked at. Here the new scores
decide the order of the candidates alone (`scores.Reordered`). A direction that is not asked for stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from xmodal_kedro.config.ensemble import RerankConfig
from xmodal_kedro.config.member import MemberConfig
from xmodal_kedro.data.image_store import ImageStore
from xmodal_kedro.models import family
from xmodal_kedro.models.checkpoint import Checkpoint
from xmodal_kedro.retrieval.embeddings import check_made_by
from xmodal_kedro.retrieval.ensemble import Member
from xmodal_kedro.retrieval.judge import SliceScores
from xmodal_kedro.retrieval.rank import rank, ranking_table
from xmodal_kedro.retrieval.rerank.stage import SECOND_STAGES, Asked, Candidates, Direction
from xmodal_kedro.retrieval.scores import Reordered, ScoreSource, Transposed, second_order
from xmodal_kedro.retrieval.slices import Slice

COLUMNS = ["split", "group", "direction", "query_id", "gallery_id", "first_rank", "fused", "second", "score", "rank"]


def check_reranker(config: RerankConfig, members: Mapping[str, MemberConfig]) -> None:
    """Refuse a method that cannot do what it is asked, or not with this member, before anything is computed.

    Raises:
        ValueError: A direction is asked of a method that cannot re-rank it, or a matching head of a member that has
            none; members that have one are named.
    """
    stage = SECOND_STAGES[config.method]
    if unable := [direction for direction in config.directions if direction not in stage.directions]:
        raise ValueError(
            f"ensemble.rerank.directions names {', '.join(unable)}, which ensemble.rerank.method "
            f"'{config.method}' cannot re-rank: leave it out"
        )
    if not stage.head or family(members[config.member].backbone.name).matches:
        return
    able = [name for name, member in members.items() if family(member.backbone.name).matches]
    headless = [name for name, one in SECOND_STAGES.items() if not one.head]
    raise ValueError(
        f"ensemble.rerank.member is '{config.member}', whose backbone '{members[config.member].backbone.name}' has no "
        f"image-text matching head; members that have one: {', '.join(able) or 'none'}. Name one of these, or set "
        f"ensemble.rerank.method to one that needs none: {', '.join(headless)}"
    )


def rerank_slices(
    slices: Sequence[Slice],
    scores: SliceScores,
    member: Member,
    config: RerankConfig,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
    images: ImageStore | None = None,
) -> pd.DataFrame:
    """Look at the first candidates of every query of `config.directions` again.

    Args:
        slices: Those without texts or images are passed over.
        scores: Of the first stage.
        member: Embeddings of `config.member`.
        config: Method, directions and number of candidates.
        device: Where the second stage computes.
        checkpoint: What made the embeddings; needed where `config.looks`.
        images: Where the pixels lie; needed where `config.looks`.

    Returns:
        A row per query and candidate, in the order of the first stage: `split, group, direction, query_id, gallery_id,
        first_rank, fused` (score of the first stage), `second` (what the second stage says by itself: a logit, or the
        adaption score), `score` (what decides) and `rank`.

    Raises:
        OtherOriginError: Checkpoint, embeddings and images do not belong together.
        ValueError: The member has no matching head, or checkpoint and images are missing where they are needed.
    """
    if config.looks:
        if checkpoint is None or images is None:
            raise ValueError(f"re-ranking by {config.method} looks at pixels: it needs a checkpoint and the images.")
        check_reranker(config, {config.member: checkpoint.member})
        check_made_by(member.images, weights=checkpoint.fingerprints["weights"], images=images.fingerprint)
    directions = list(dict.fromkeys(config.directions))
    tables = [pd.DataFrame(columns=COLUMNS)]
    for part in slices:
        if not (part.text_ids and part.image_ids):
            continue
        sources, ids = _both(scores(part)), {"t2i": (part.text_ids, part.image_ids)}
        ids["i2t"] = ids["t2i"][::-1]
        found = {one: rank(sources[one], None, config.top_ks.get(part.group, config.top_k)) for one in directions}
        candidates = {one: _candidates(sources[one], first.top_rows) for one, first in found.items()}
        asked = Asked(part, candidates, member, config, device, checkpoint, images)
        for one, (second, score) in SECOND_STAGES[config.method].ask(asked).items():
            fused = candidates[one].first
            order = second_order(torch.from_numpy(fused), torch.from_numpy(score))
            table = ranking_table(*ids[one], found[one]).rename(columns={"rank": "first_rank"})
            new = {"fused": fused, "second": second, "score": score, "rank": order.argsort(dim=1).numpy() + 1}
            named = {"split": part.split, "group": part.group, "direction": one}
            tables.append(table.assign(**named, **{name: new[name].ravel() for name in new})[COLUMNS])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def reordered(scores: SliceScores, reranking: pd.DataFrame | None) -> SliceScores:
    """Scores of slices with the candidates of every query in their new order; what was not re-ranked stays as it is.

    Args:
        scores: Of the first stage, the very ones that were re-ranked.
        reranking: Of `rerank_slices`; none leaves the scores alone.

    Raises:
        ValueError: When a slice is asked for whose candidates were not, or not by these scores, re-ranked.
    """
    if reranking is None:
        return scores
    tables = dict(iter(reranking.groupby(["split", "group", "direction"], sort=False)))
    directions = list(reranking["direction"].unique()) or ["t2i"]  # an empty one is of no slice

    def of_slice(part: Slice) -> tuple[ScoreSource, ScoreSource | None]:
        sources = _both(scores(part))
        if part.text_ids and part.image_ids:
            for direction in directions:
                table = tables.get((part.split, part.group, direction))
                ids = (part.text_ids, part.image_ids) if direction == "t2i" else (part.image_ids, part.text_ids)
                if table is None or (new := _in_new_order(sources[direction], table, *ids)) is None:
                    raise ValueError(
                        f"the re-ranking is not of these scores of {part.split}/{part.group}: run the re-rank node "
                        "again."
                    )
                sources[direction] = new
        return sources["t2i"], sources["i2t"]

    return of_slice


def _in_new_order(
    source: ScoreSource, table: pd.DataFrame, query_ids: Sequence[str], gallery_ids: Sequence[str]
) -> Reordered | None:
    """A source as its part of the re-ranking says; none if that is of other scores."""
    queries = pd.Index(query_ids).get_indexer(pd.Index(table["query_id"]))
    gallery = pd.Index(gallery_ids).get_indexer(pd.Index(table["gallery_id"]))
    width = len(table) // len(query_ids)
    if (gallery < 0).any() or not np.array_equal(queries, np.repeat(np.arange(len(query_ids)), width)):
        return None
    candidates = gallery.reshape(-1, width)
    if not np.allclose(_candidates(source, candidates).first.ravel(), table["fused"], rtol=1e-4, atol=1e-7):
        return None
    second = torch.tensor(table["score"].to_numpy(np.float64))
    return Reordered(source, torch.tensor(candidates), second.view(-1, width))


def _both(found: tuple[ScoreSource, ScoreSource | None]) -> dict[Direction, ScoreSource]:
    """Texts over images, and images over texts."""
    forward, backward = found
    return {"t2i": forward, "i2t": Transposed(forward) if backward is None else backward}


def _candidates(source: ScoreSource, rows: np.ndarray) -> Candidates:
    """Candidates [N, K] with their exact scores."""
    queries = torch.arange(len(rows), device=source.device).repeat_interleave(rows.shape[1])
    exact = source.pairs(queries, torch.from_numpy(rows.ravel().astype(np.int64)).to(source.device))
    return Candidates(rows, exact.cpu().numpy().reshape(rows.shape))
