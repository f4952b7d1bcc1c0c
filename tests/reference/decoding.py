"""Decoding one caption at a time from a function of all ids so far: no batch, no cache, plain lists and sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from xmodal_kedro.config.decoding import DecodingConfig

Next = Callable[[tuple[int, ...]], Sequence[float]]  # ids so far -> log-probability of every token, in single precision
Result = tuple[tuple[int, ...], float, bool]  # ids without the end, log-probability, whether the end was reached


def greedy(following: Next, end: int, max_steps: int) -> Result:
    ids: tuple[int, ...] = ()
    total = 0.0
    for _ in range(max_steps):
        options = list(following(ids))
        if max(options) == -math.inf:
            break
        token = options.index(max(options))
        total += options[token]
        if token == end:
            return ids, total, True
        ids = (*ids, token)
    return ids, total, False


def beam(following: Next, end: int, max_steps: int, width: int, penalty: float) -> Result:
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[float, tuple[int, ...], float]] = []  # -score, ids with the end, log-probability
    for length in range(1, max_steps + 1):
        candidates = []
        for ids, total in running:
            for token, gain in enumerate(following(ids)):
                if gain > -math.inf:
                    candidates.append((-float(np.float32(total) + np.float32(gain)), (*ids, token)))
        if not candidates:
            break
        candidates.sort()
        candidates = candidates[: 2 * width]
        going_on = []
        for rank, (cost, ids) in enumerate(candidates):
            if ids[-1] != end and length < max_steps:
                going_on.append((ids, -cost))
            elif rank < width:
                done.append((cost / length**penalty, ids, -cost))
        done = sorted(done)[:width]
        if not going_on:
            break
        running = going_on[:width]
        if len(done) == width and running[0][1] / length**penalty <= -done[-1][0]:
            break
    if not done:
        ids, total = min(running, key=lambda one: (-one[1], one[0]))
        return ids, total, False
    _, ids, total = done[0]
    return (ids[:-1], total, True) if ids[-1] == end else (ids, total, False)


def exhaustive(following: Next, end: int, max_steps: int, penalty: float) -> Result:
    """The best of all captions that end, or that are cut at `max_steps`."""
    leaves = []

    def visit(ids: tuple[int, ...], total: float) -> None:
        if (ids and ids[-1] == end) or len(ids) == max_steps:
            leaves.append((-total / len(ids) ** penalty, ids, total))
            return
        for token, gain in enumerate(following(ids)):
            if gain > -math.inf:
                visit((*ids, token), float(np.float32(total) + np.float32(gain)))

    visit((), 0.0)
    _, ids, total = min(leaves)
    return (ids[:-1], total, True) if ids[-1] == end else (ids, total, False)


def nucleus(
    following: Next, end: int, max_steps: int, top_p: float, temperature: float, draws: Sequence[float]
) -> Result:
    ids: tuple[int, ...] = ()
    total = 0.0
    for step in range(max_steps):
        options = list(following(ids))
        weights = [math.exp(option / temperature) for option in options]
        ranked = sorted(((-weight / sum(weights), token) for token, weight in enumerate(weights)))
        kept: list[tuple[float, int]] = []
        while sum(probability for probability, _ in kept) < top_p and len(kept) < len(ranked):
            kept.append((-ranked[len(kept)][0], ranked[len(kept)][1]))
        left = draws[step] * sum(probability for probability, _ in kept)
        token = kept[-1][1]
        for probability, candidate in kept:
            if left < probability:
                token = candidate
                break
            left -= probability
        total += options[token]
        if token == end:
            return ids, total, True
        ids = (*ids, token)
    return ids, total, False


def decoded(following: Next, end: int, config: DecodingConfig, number: int) -> Result:
    """By the method of a config; `number` is that of the image, which decides what is drawn for it."""
    if config.method == "greedy":
        return greedy(following, end, config.max_steps)
    if config.method == "beam":
        return beam(following, end, config.max_steps, config.beams, config.length_penalty)
    draws = np.random.default_rng([config.seed, number]).random(config.max_steps).tolist()
    return nucleus(following, end, config.max_steps, config.top_p, config.temperature, draws)
