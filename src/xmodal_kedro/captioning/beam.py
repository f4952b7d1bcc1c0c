"""Beam search with length normalisation over a batch of images, by the rules of transformers' `generate`.

Every step looks at the best 2K continuations of the K captions under way of an image. Those of the best K that end (or
that the last step cuts) compete for its K finished places with log-probability / length ** penalty, the end counted;
the best K that do not end go on. An image is done when its finished places are full and the most probable caption under
way, ended now, would win none of them.

Of equal continuations the lowest ids win: the captions under way are kept in the order of their ids, compared token by
token, so that the lowest place among all continuations is the lowest caption.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from xmodal_kedro.captioning.captioner import Captioner, Draft, State, log_probabilities, refuse_nan
from xmodal_kedro.config.decoding import DecodingConfig


@dataclass
class _Search:
    """The captions of one image."""

    config: DecodingConfig
    running: list[Draft]  # in the order of their ids
    parents: list[int] = field(default_factory=list)  # of the running ones: places among those of the step before
    finished: list[tuple[float, tuple[int, ...], Draft]] = field(default_factory=list)  # -score, ids and end
    over: bool = False

    def grow(self, values: list[float], places: list[int], tokens: int, end: int, step: int) -> None:
        """Take the continuations with the best log-probabilities, best first, out of `tokens` per running caption."""
        last = step + 1 == self.config.max_steps
        following: list[tuple[int, Draft]] = []
        refuse_nan(values[0], step)
        for rank, (value, place) in enumerate(zip(values, places, strict=True)):
            if value == -float("inf"):  # ruled out, as all that come after it
                break
            parent, token = divmod(place, tokens)
            origin = self.running[parent]
            ids = (*origin.ids, token)
            if token == end or last:
                if rank < self.config.beams:
                    draft = Draft(origin.row, origin.ids if token == end else ids, value, True, token == end)
                    self.finished.append((-value / len(ids) ** self.config.length_penalty, ids, draft))
            elif len(following) < self.config.beams:
                following.append((place, Draft(origin.row, ids, value)))
        self.finished = sorted(self.finished, key=lambda one: one[:2])[: self.config.beams]
        self.over = not following or self._settled(following[0][1])
        if following:
            following.sort(key=lambda one: one[0])
            self.running = [draft for _, draft in following]
            self.parents = [place // tokens for place, _ in following]

    def _settled(self, best: Draft) -> bool:
        if len(self.finished) < self.config.beams:
            return False
        score = best.log_probability / len(best.ids) ** self.config.length_penalty
        return score <= -self.finished[-1][0]

    def result(self) -> Draft:
        """The best finished caption; where no token may follow any, the best of those that got furthest."""
        if self.finished:
            return self.finished[0][2]
        return max(self.running, key=lambda draft: draft.log_probability)  # the first one of equals


def beam_search(captioner: Captioner[State], images: Tensor, config: DecodingConfig) -> list[Draft]:
    """The best caption of every image [B, ...] that a beam finds."""
    vocabulary = captioner.vocabulary
    searches = [_Search(config, [Draft(row)]) for row in range(len(images))]
    present = searches
    state = captioner.begin(images, config.max_steps)
    ids = torch.full((len(images),), vocabulary.start, device=images.device)
    scores = torch.zeros(len(images), 1, device=images.device)  # [R, W], W captions under way per image
    for step in range(config.max_steps):
        logits, state = captioner.step(ids, state)
        tokens = logits.shape[1]
        totals = log_probabilities(logits).view(*scores.shape, tokens) + scores[:, :, None]
        values, places = best(totals.flatten(1), 2 * config.beams)
        for search, row_values, row_places in zip(present, values.tolist(), places.tolist(), strict=True):
            search.grow(row_values, row_places, tokens, vocabulary.end, step)
        width = max((len(search.running) for search in present if not search.over), default=0)
        if not width:
            break
        rows, next_ids, next_scores = [], [], []
        for place, search in enumerate(present):
            if search.over:
                continue
            # An image with fewer captions under way than others is filled up with rows that can win nothing.
            missing = width - len(search.running)
            rows += [place * scores.shape[1] + parent for parent in [*search.parents, *[0] * missing]]
            next_ids += [*(draft.ids[-1] for draft in search.running), *[vocabulary.end] * missing]
            next_scores.append([*(draft.log_probability for draft in search.running), *[-torch.inf] * missing])
        if rows != list(range(scores.numel())):
            state = captioner.select(state, torch.tensor(rows, device=images.device))
        ids = torch.tensor(next_ids, device=images.device)
        scores = torch.tensor(next_scores, device=images.device)
        present = [search for search in present if not search.over]
    return [search.result() for search in searches]


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best scores of every row [R, N], best first, and their places, both [R, min(count, N)].

    Of equal scores the lowest places come, and come first; `torch.topk` promises neither.
    """
    count = min(count, scores.shape[1])
    values, places = scores.topk(min(count + 1, scores.shape[1]))  # one more shows whether equals were left out
    if values.shape[1] > count:
        torn = (values[:, count] == values[:, count - 1]) & (values[:, count] > -torch.inf)
        values, places = values[:, :count].clone(), places[:, :count].clone()
        for row in torn.nonzero()[:, 0].tolist():
            ordered = scores[row].sort(descending=True, stable=True)
            values[row], places[row] = ordered.values[:count], ordered.indices[:count]
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)
