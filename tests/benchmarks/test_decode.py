"""Sides of contest `decode` write the same captions, which are worth comparing, and what is not the same is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import decode as contest
from xmodal_kedro.models.gpt import GPTSizes

SIZES = GPTSizes(vocab_size=200, layers=2, heads=2, width=64)
given = partial(contest.work, SIZES, 12, 5, alone=4, device="cpu", members=3)  # batches of 5, 5 and 2


@pytest.fixture(scope="module")
def greedy() -> list[contest.Written]:
    return contest.ours(given(), contest.GREEDY)


def test_all_sides_write_the_same_greedily(greedy: list[contest.Written]) -> None:
    outputs = {"ours": greedy, contest.PUBLISHED: contest.published(given()), contest.ONE: contest.ensemble(given())}
    outputs[contest.GENERATE] = contest.generate(given(), beams=1)
    assert len(outputs[contest.PUBLISHED]) == 4
    told = contest.agree(given, contest.GREEDY, outputs)
    assert told[contest.PUBLISHED].startswith("all 4 equal (12 distinct captions of ")
    assert told[contest.GENERATE].startswith("all 12 equal")
    assert told.keys() == outputs.keys() - {"ours"}


def test_beams_write_the_same_and_not_what_greed_does(greedy: list[contest.Written]) -> None:
    beams = contest.ours(given(), contest.BEAM)
    outputs = {"ours": beams, contest.GENERATE: contest.generate(given(), beams=5)}
    assert contest.agree(given, contest.BEAM, outputs)[contest.GENERATE].startswith("all 12 equal")
    assert beams != greedy
    outputs[contest.GENERATE] = [beams[0], greedy[1], *beams[2:]]
    with pytest.raises(AssertionError, match="caption 1 differs"):
        contest.agree(given, contest.BEAM, outputs)


def test_captions_vary_and_end(greedy: list[contest.Written]) -> None:
    assert len(set(greedy)) == 12
    assert all(ended for _, ended in greedy)
    assert len({len(ids) for ids, _ in greedy}) > 3


def test_other_captions_are_refused_and_ties_are_not(
    greedy: list[contest.Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, ended = greedy[2]
    other = [*greedy[:2], ((*ids[:3], (ids[3] + 1) % 200, *ids[4:]), ended), *greedy[3:]]
    for name in (contest.GENERATE, contest.PUBLISHED):
        with pytest.raises(AssertionError, match="differ"):
            contest.agree(given, contest.GREEDY, {"ours": greedy, name: other})
    with pytest.raises(AssertionError, match="wrote 11 of 12"):
        contest.agree(given, contest.GREEDY, {"ours": greedy, contest.GENERATE: greedy[:11]})
    with pytest.raises(AssertionError, match="only 1 of 12 captions are distinct"):
        contest.agree(given, contest.GREEDY, {"ours": greedy[:1] * 12, contest.GENERATE: greedy})
    few = [((row, 5), True) for row in range(12)]
    with pytest.raises(AssertionError, match="none ends early"):
        contest.agree(given, contest.GREEDY, {"ours": few, contest.GENERATE: few})

    work = given()
    head, gap = work.captioner.gpt.head, partial(contest.parting, work.captioner, work.vectors[2])
    assert gap(greedy[2], other[2], contest.GREEDY) > 0.1
    with torch.no_grad():  # the other token ties where they part
        twin = other[2][0][3]
        head.weight[twin] = head.weight[ids[3]]
    assert gap(greedy[2], other[2], contest.GREEDY) < contest.NEAR
    monkeypatch.setattr(contest, "parting", lambda *_: contest.NEAR / 2)
    told = contest.agree(given, contest.GREEDY, {"ours": greedy, contest.GENERATE: other})
    assert told[contest.GENERATE].startswith("1 of 12 differ, where tokens tie")


def test_the_limit_multiplies_the_rows_that_are_needed(greedy: list[contest.Written]) -> None:
    work, steps = given(), [len(ids) + ended for ids, ended in greedy]
    rows = contest.rows_of(work, contest.GREEDY)
    assert [batch[:2] for batch in rows] == [[5, 5], [5, 5], [2, 2]]
    assert sum(sum(batch[1:]) for batch in rows) == sum(steps)
    assert [len(batch) - 1 for batch in rows] == [max(steps[:5]), max(steps[5:10]), max(steps[10:])]
    beams = contest.rows_of(work, contest.BEAM)
    assert [batch[:3] for batch in beams] == [[5, 5, 25], [5, 5, 25], [2, 2, 10]]
    assert isinstance(contest.products(work, rows), float)
