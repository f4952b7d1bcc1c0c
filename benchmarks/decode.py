"""Contest: captions written by a GPT of the published sizes, greedily, by beams and by an ensemble of three.

The GPT has 12 layers of 12 heads and 768, 100 positions and 5000 characters. The vectors of the photos are given, for
encoding photos is the same work on every side, and are drawn, as are the weights. Plain random weights would write the
same few tokens over and over and never an end, so they are drawn such that captions differ and end:

- Tokens and positions have unit variance, and the blocks add up to a few times as much, whatever their number: what
  follows depends on the photo and on all tokens before, not on the last one alone, and loops are rare.
- Logits have a standard deviation of 2.5: the best of 5000 tokens has a probability of about a tenth.
- One direction is the end's: its row of the head is that direction, and each position has more of it than the one
  before. What tokens and photos have of it by chance decides how early it wins.

All captions of the full sizes are different, and most have 9 to 20 characters; `agree` makes sure of it.

Peers are the published loop (a photo at a time, everything computed again for each token, no cache), which gets 32 of
the 256 photos and whose rate is compared, and `generate` of transformers on the same weights. The published loop is
re-stated kindly: our GPT with its fused attention, and logits of the last place alone. All sides stop at the end or
after 30 tokens, in fp32 without gradients.

The three members of the ensemble are copies of one captioner, each with its own memory: they write what it writes, so
the ratio is about cost and not about captions that happen to be longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.captioning.decode import Caption, decode_batches
from xmodal_kedro.captioning.ensemble import EnsembleCaptioner
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.models.characters import SPECIAL, Characters
from xmodal_kedro.models.gpt import GPT, Cache, GPTSizes, as_gpt2

PUBLISHED, GENERATE, ONE = "published loop, re-stated", "transformers generate", "one captioner"
GREEDY = DecodingConfig(max_steps=30)
BEAM = DecodingConfig(method="beam", beams=5, max_steps=30)
WEIGHTS = (0.5, 0.3, 0.2)  # of the published ensemble
FULL = GPTSizes(vocab_size=5000)
QUICK = GPTSizes(vocab_size=5000, layers=4, heads=4, width=256)
SMALL = GPTSizes(vocab_size=100, layers=2, heads=2, width=32)
NEAR = 1e-4  # logits, or log-probabilities per token, that are so near may be taken for equal

Written = tuple[tuple[int, ...], bool]  # ids without start and end, and whether the end was reached


@dataclass
class Work:
    """What all sides are given.

    Attributes:
        captioner: One that writes captions of vectors.
        theirs: Its copy in transformers.
        members: Copies of it for the ensemble.
        vectors: [N, W] of the photos.
        batch: Photos at once.
        alone: How many of the photos the published loop gets.
    """

    captioner: Captioner
    theirs: Any
    members: list[Captioner]
    vectors: Tensor
    batch: int
    alone: int


def run(options: Options) -> list[dict[str, Any]]:
    """Greedy against both peers, beams against transformers, three captioners against one."""
    sizes, batch, many, alone = (QUICK, 16, 64, 8) if options.quick else (FULL, 64, 256, 32)
    gpt = f"GPT of {sizes.layers} x {sizes.width}"
    rest = {"alone": alone, "device": options.device}
    return [
        _case(
            f"greedy, {gpt}, {many} photos, {batch} at once; {alone} for the published loop, scaled to {many}",
            partial(work, sizes, many, batch, **rest),
            {"ours": partial(ours, decoding=GREEDY), PUBLISHED: published, GENERATE: partial(generate, beams=1)},
            {PUBLISHED: 10.0, GENERATE: 1.0},
            GREEDY,
            options,
            parts={PUBLISHED: alone / many},
        ),
        _case(
            f"beams of 5, {gpt}, {batch} photos at once",
            partial(work, sizes, batch, batch, **rest),
            {"ours": partial(ours, decoding=BEAM), GENERATE: partial(generate, beams=BEAM.beams)},
            {GENERATE: 1.0},
            BEAM,
            options,
        ),
        _case(
            f"an ensemble of three, greedy, {gpt}, {batch} photos at once (cost of three: 3.1 times that of one)",
            partial(work, sizes, batch, batch, **rest, members=len(WEIGHTS)),
            {"ours": ensemble, ONE: partial(ours, decoding=GREEDY)},
            {ONE: 1 / 3.1},
            GREEDY,
            options,
        ),
    ]


def _case(
    workload: str,
    inputs: Callable[[], Work],
    sides: dict[str, Callable[[Work], list[Written]]],
    ratios: dict[str, float],
    decoding: DecodingConfig,
    options: Options,
    parts: dict[str, float] | None = None,
) -> dict[str, Any]:
    return compete(
        workload,
        inputs,
        sides,
        partial(agree, inputs, decoding),
        ("matrix products of the same steps", partial(products, rows=rows_of(inputs(), decoding))),
        {} if options.quick else {name: Goal(ratio=ratio) for name, ratio in ratios.items()},
        small=partial(work, SMALL, 4, 2, alone=2, device=options.device, members=len(WEIGHTS)),
        memory=not options.quick,
        repetitions=3 if options.quick else 5,
        parts=parts,
    )


def work(sizes: GPTSizes, photos: int, batch: int, *, alone: int, device: str, members: int = 0) -> Work:
    """The captioner of these sizes with its copies, and vectors of so many photos; always the same."""
    captioner = some_captioner(sizes).to(device)
    theirs = as_gpt2(captioner.gpt, start=captioner.vocabulary.start, end=captioner.vocabulary.end, padding=0)
    vectors = torch.randn(photos, sizes.width, generator=torch.Generator().manual_seed(1)).to(device)
    return Work(captioner, theirs, [deepcopy(captioner) for _ in range(members)], vectors, batch, alone)


@torch.no_grad()
def some_captioner(sizes: GPTSizes) -> Captioner:
    """Random weights whose captions differ and end."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = Characters((*SPECIAL, *(chr(ord("一") + row) for row in range(sizes.vocab_size - len(SPECIAL)))))
    gpt = GPT(sizes)
    for name, weight in gpt.blocks.named_parameters():
        if weight.dim() == 2:
            last = name.endswith(("attention.output.weight", "mlp.2.weight"))  # what a block adds
            weight.normal_(std=(3 / sizes.layers**0.5 if last else 1) / weight.shape[1] ** 0.5, generator=generator)
    for weight, std in ((gpt.tokens.weight, 1.0), (gpt.positions, 1.0), (gpt.head.weight, 2.5 / sizes.width**0.5)):
        weight.normal_(std=std, generator=generator)
    end = torch.randn(sizes.width, generator=generator)
    end -= end.mean()  # the layer norm would take that away
    end /= end.norm()
    place = torch.arange(sizes.block_size)[:, None]
    gpt.positions += (0.65 * (place - 4) - (gpt.positions @ end)[:, None]) * end
    gpt.head.weight[vocabulary.end] = 3.5 * end
    return Captioner(nn.Identity(), gpt, vocabulary).eval()


def ours(given: Work, decoding: DecodingConfig) -> list[Written]:
    """Batches with a cache, which captions leave when they end."""
    return _written(decode_batches(given.captioner, given.vectors.split(given.batch), decoding))


def ensemble(given: Work) -> list[Written]:
    """The members with the published weights."""
    together = EnsembleCaptioner({str(place): member for place, member in enumerate(given.members)}, WEIGHTS)
    return _written(decode_batches(together, given.vectors.split(given.batch), GREEDY))


def _written(captions: Iterable[Caption]) -> list[Written]:
    return [(caption.ids, caption.ended) for caption in captions]


@torch.inference_mode()
def published(given: Work) -> list[Written]:
    """One photo after the other; each token from the whole sequence, computed again."""
    gpt, end = given.captioner.gpt, given.captioner.vocabulary.end
    found = []
    for vector in given.vectors[: given.alone]:
        ids = torch.tensor([[given.captioner.vocabulary.start]], device=vector.device)
        for _ in range(GREEDY.max_steps):
            states = gpt(torch.cat([vector[None, None], gpt.embed(ids)], dim=1))
            following = gpt.logits(states[:, -1]).argmax(1)
            ids = torch.cat([ids, following[:, None]], dim=1)
            if following.item() == end:
                break
        found.append(_cut(ids[0, 1:].tolist(), end))
    return found


@torch.inference_mode()
def generate(given: Work, beams: int) -> list[Written]:
    """The same batches; the photo and the start are the prompt."""
    start, end = given.captioner.vocabulary.start, given.captioner.vocabulary.end
    found = []
    for vectors in given.vectors.split(given.batch):
        starts = torch.full((len(vectors), 1), start, device=vectors.device)
        prompt = torch.cat([vectors[:, None], given.theirs.transformer.wte(starts)], dim=1)
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=vectors.device)
        rows = given.theirs.generate(
            inputs_embeds=prompt,
            attention_mask=mask,
            do_sample=False,
            num_beams=beams,
            max_new_tokens=GREEDY.max_steps,
            use_cache=True,
        )
        found += [_cut(row, end) for row in rows.tolist()]
    return found


def _cut(ids: list[int], end: int) -> Written:
    return (tuple(ids[: ids.index(end)]), True) if end in ids else (tuple(ids), False)


class Counting:
    """A captioner that notes how many rows it was asked for, the images first."""

    def __init__(self, captioner: Captioner) -> None:
        """Ask this captioner."""
        self.captioner, self.vocabulary, self.rows = captioner, captioner.vocabulary, list[int]()

    def begin(self, images: Tensor, steps: int) -> Cache:
        """Note the images."""
        self.rows.append(len(images))
        return self.captioner.begin(images, steps)

    def step(self, ids: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """Note the captions under way."""
        self.rows.append(len(ids))
        return self.captioner.step(ids, state)

    def select(self, state: Cache, rows: Tensor) -> Cache:
        """As asked."""
        return self.captioner.select(state, rows)


def rows_of(given: Work, decoding: DecodingConfig) -> list[list[int]]:
    """Rows that nobody can spare, per batch: its images, then the captions that are under way at each step."""
    found = []
    for vectors in given.vectors.split(given.batch):
        counting = Counting(given.captioner)
        captions = list(decode_batches(counting, [vectors], decoding))
        if decoding.method == "greedy":  # where captions that have ended stay for a while
            steps = [len(caption.ids) + caption.ended for caption in captions]
            counting.rows = [len(vectors), *(sum(step < of for of in steps) for step in range(max(steps)))]
        found.append(counting.rows)
    return found


@torch.inference_mode()
def products(given: Work, rows: Sequence[Sequence[int]]) -> float:
    """The linear layers on these rows and nothing else; attention (under 1 %) is left out."""
    total = 0.0
    for captioner in given.members or [given.captioner]:
        gpt = captioner.gpt
        for batch in rows:
            for step, count in enumerate(batch):
                states = gpt.positions.new_ones(count, gpt.sizes.width)
                for block in gpt.blocks:
                    looked = F.linear(states, block.attention.queries_keys_values.weight)
                    states = F.linear(looked[:, : gpt.sizes.width], block.attention.output.weight)
                    states = F.linear(F.linear(states, block.mlp[0].weight), block.mlp[2].weight)
                if step:  # nothing follows an image but the start
                    states = F.linear(states, gpt.head.weight)
            total += states[0, 0].item()  # which also waits for a device
    return total


def agree(inputs: Callable[[], Work], decoding: DecodingConfig, outputs: dict[str, list[Written]]) -> dict[str, str]:
    """The same captions on all sides, which are no trivial ones; those of `generate` may part where two tokens tie."""
    found = outputs["ours"]
    lengths = sorted(len(ids) for ids, _ in found)
    distinct = len(set(found))
    assert 2 * distinct > len(found), f"only {distinct} of {len(found)} captions are distinct: anything would agree"
    assert lengths[-1] >= lengths[0] + 4, f"all captions have {lengths[0]} to {lengths[-1]} tokens: none ends early"
    about = f"{distinct} distinct captions of {lengths[0]} to {lengths[-1]} characters"
    told = {}
    for name in [name for name in outputs if name != "ours"]:
        theirs = outputs[name]
        apart = [place for place, (left, right) in enumerate(zip(found, theirs, strict=False)) if left != right]
        assert len(theirs) == len(found) or name == PUBLISHED, f"{name} wrote {len(theirs)} of {len(found)} captions"
        assert not apart or name != PUBLISHED, f"{len(apart)} captions of {len(theirs)} differ from those of {name}"
        given = inputs() if apart else None
        for place in apart:
            assert given is not None
            gap = parting(given.captioner, given.vectors[place], found[place], theirs[place], decoding)
            assert gap <= NEAR, f"caption {place} differs from that of {name}, and nothing ties there: {gap:.1e}"
        said = f"{len(apart)} of {len(theirs)} differ, where tokens tie" if apart else f"all {len(theirs)} equal"
        told[name] = f"{said} ({about})"
    return told


@torch.inference_mode()
def parting(captioner: Captioner, vector: Tensor, left: Written, right: Written, decoding: DecodingConfig) -> float:
    """How far from equal the choice was between two captions of a photo.

    Greedily: the most that the two tokens where they part are below the best logit there, or from each other. By beams:
    the difference of what the captions are compared by.
    """
    end = captioner.vocabulary.end
    if decoding.method == "beam":
        return abs(_score(captioner, vector, left, decoding) - _score(captioner, vector, right, decoding))
    one, other = ([*ids, *[end] * ended] for ids, ended in (left, right))
    same = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    logits = _logits(captioner, vector, one[: same + 1])[-1]
    return float(logits.max() - logits[[one[same], other[same]]].min())


def _score(captioner: Captioner, vector: Tensor, written: Written, decoding: DecodingConfig) -> float:
    ids = torch.tensor([*written[0], *[captioner.vocabulary.end] * written[1]], device=vector.device)
    gains = _logits(captioner, vector, ids.tolist()).log_softmax(1).gather(1, ids[:, None])
    return float(gains.sum() / len(ids) ** decoding.length_penalty)


def _logits(captioner: Captioner, vector: Tensor, ids: Sequence[int]) -> Tensor:
    """[L, V] of each of these ids, from the photo and the ids before it."""
    whole = torch.tensor([[captioner.vocabulary.start, *ids]], device=vector.device)
    return captioner(vector[None], whole)[0, 1:]
