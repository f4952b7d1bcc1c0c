"""Contest: the matching head of BLIP-large over the first candidates of both directions, against the loop of LAVIS.

The text encoder is BLIP-large's (12 layers of 768, looking at states of 1024), with random weights; the images' states
are given, 577 (384 pixels) or 197 (224 pixels) tokens each. There are 1000 images with five captions each, whose
features are drawn so that about half of the captions find their image first; captions have as many tokens as those of
COCO (val 2017, by BERT's tokenizer, [CLS] and [SEP] included). Every caption asks for its first k images, every image
for its first k captions.

The peer is the evaluation of BLIP (train_retrieval.py) and LAVIS (compute_sim_matrix), re-stated on the same weights in
transformers: captions padded to 35 tokens, one forward per query over its k candidates, keys and values projected for
every pair, both directions one after the other.

The whole would take the peer an hour and more, so each side answers an equal part of it: the peer all requests by n
images and their captions, ours all requests for n typical images, which is how each goes through the whole. Both are
6 n k requests. Outside the clock the peer scores every pair of ours, and what it scored inside is compared with ours
where both looked at the same pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest import Goal, Options, compete
from xmodal_kedro.models.backbone import Tokens
from xmodal_kedro.models.blip import Blip
from xmodal_kedro.retrieval.rerank.itm import match_states

Queries = list[tuple[int, np.ndarray]]  # each with its candidates [k], best first
Scores = dict[tuple[int, int], float]  # of image and caption

PEER = "LAVIS/BLIP loop, re-stated"
WORLD = 1000  # images
CAPTIONS = 5  # of each image
WIDTH = 1024  # of ViT-L
PADDED = 35  # tokens that BLIP and LAVIS pad captions to
BATCH = 64  # pairs at once, as in RerankConfig
LENGTHS = {9: 83, 10: 904, 11: 3250, 12: 4499, 13: 4707, 14: 3941, 15: 2786, 16: 1813, 17: 1093, 18: 696, 19: 408,
           20: 265, 21: 165, 22: 110, 23: 69, 24: 61, 25: 27, 26: 29, 27: 23, 28: 27, 29: 18, 30: 8, 31: 5, 32: 3,
           33: 4, 34: 4, 35: 16}  # fmt: skip
"""How many of COCO's 25 014 captions have so many tokens; the last counts all that are longer and are cut."""
FREQUENCIES = np.array(list(LENGTHS.values())) / sum(LENGTHS.values())


@dataclass
class Work:
    """A part of an evaluation.

    Attributes:
        backbone: BLIP with the text encoder of BLIP-large.
        states: [M, T, 1024] of the images that take part.
        tokens: Of all captions.
        pairs: [P, 2] place of the image in `states` and of the caption, each pair once: all about the chosen images.
        from_texts: Caption and its candidates among `states`, of the captions that the peer asks for.
        from_images: Image and its candidates among the captions.
    """

    backbone: Blip
    states: Tensor
    tokens: Tokens
    pairs: np.ndarray
    from_texts: Queries
    from_images: Queries


def run(options: Options) -> list[dict[str, Any]]:
    """577 and 197 image tokens, top-10 and top-64; quick: top-10, each side timed once."""
    cases = [(577, 10, 1), (577, 64, 1), (197, 10, 2), (197, 64, 1)]
    chosen = [(577, 10, 1), (197, 10, 1)] if options.quick else cases
    return [_case(tokens, k, images, options) for tokens, k, images in chosen]


def _case(tokens: int, k: int, images: int, options: Options) -> dict[str, Any]:
    requests = f"{6 * images * k} requests of each side, {len(evaluation(WORLD, k, images)[1])} pairs for ours"
    return compete(
        f"BLIP-large's text side, {tokens} image tokens, top-{k}, both directions: {requests}",
        partial(work, tokens, k, images, options.device),
        {"ours": ours, PEER: lavis},
        partial(agree, partial(work, tokens, k, images, options.device)),
        ("matrix products on trimmed tokens", products),
        {} if options.quick else {PEER: Goal(ratio=6.0)},
        small=partial(work, 17, 2, 1, options.device, world=20),
        memory=not options.quick,
        repetitions=0 if options.quick else 5,
    )


@cache
def evaluation(world: int, k: int, images: int) -> tuple[np.ndarray, np.ndarray, Queries, Queries]:
    """Which pairs an evaluation of `world` images looks at.

    Returns:
        Tokens of every caption; image and caption [P, 2] of all pairs about `images` images that are typical: asked for
        as often as the average, about as many pairs, by captions of average length; captions of these images with
        their candidates; these images with theirs.
    """
    rng = np.random.default_rng(0)
    features = rng.normal(size=(max(1, world // 10), 64))[rng.integers(0, max(1, world // 10), world)]
    features += rng.normal(size=features.shape)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    captions = np.repeat(features, CAPTIONS, axis=0) + rng.normal(size=(CAPTIONS * world, 64)) / 4
    popular = np.exp(0.1 * rng.normal(size=(world, 1)))  # some images are near to everything
    scores = captions @ (features * popular).T
    best_images, best_captions = (np.argsort(-side, axis=1, kind="stable")[:, :k] for side in (scores, scores.T))
    asked = np.zeros((2, world, len(captions)), bool)  # by captions, by images
    asked[0, best_images.ravel(), np.repeat(np.arange(len(captions)), k)] = True
    asked[1, np.repeat(np.arange(world), k), best_captions.ravel()] = True
    either = asked[0] | asked[1]
    lengths = rng.choice(list(LENGTHS), len(captions), p=FREQUENCIES)
    sizes = np.stack([asked.sum((0, 2)), either.sum(1), either @ lengths / lengths.mean()])
    typical = np.argsort(np.abs(sizes - sizes.mean(1, keepdims=True)).sum(0), kind="stable")[:images]
    chosen = np.argwhere(either[typical])
    chosen[:, 0] = typical[chosen[:, 0]]
    own = (typical[:, None] * CAPTIONS + np.arange(CAPTIONS)).ravel()
    return lengths, chosen, [(int(c), best_images[c]) for c in own], [(int(i), best_captions[i]) for i in typical]


def work(tokens: int, k: int, images: int, device: str, world: int = WORLD) -> Work:
    """Weights, states and captions; only the images that somebody looks at have states."""
    lengths, pairs, from_texts, from_images = evaluation(world, k, images)
    used = np.unique(np.concatenate([pairs[:, 0], *(candidates for _, candidates in from_texts)]))
    place = np.full(world, -1)
    place[used] = np.arange(len(used))
    backbone = blip_large(tokens).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(used), tokens, WIDTH, generator=generator)
    vocabulary = len(backbone.model.get_parameter("text_encoder.embeddings.word_embeddings.weight"))
    return Work(
        backbone,
        states.to(device),
        {
            "input_ids": torch.randint(vocabulary, (len(lengths), PADDED), generator=generator),
            "attention_mask": (torch.arange(PADDED) < torch.from_numpy(lengths)[:, None]).long(),
        },
        np.stack([place[pairs[:, 0]], pairs[:, 1]], axis=1),
        [(caption, place[candidates]) for caption, candidates in from_texts],
        [(int(place[image]), candidates) for image, candidates in from_images],
    )


def blip_large(tokens: int) -> Blip:
    """Random weights; the image tower, which does not take part, has one thin layer."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 16}
    side = 16 * round((tokens - 1) ** 0.5)
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    architecture = {
        "image_text_hidden_size": 256,
        "vision_config": {**vision, "image_size": side, "patch_size": 16},
        "text_config": {**text, "max_position_embeddings": 512, "initializer_range": 0.03},
    }
    return Blip.from_config(architecture, seed=0, texts=["a small vocabulary: embedding tokens costs nothing"])


def _about(given: Work) -> tuple[Tensor, np.ndarray]:
    """States of the images that pairs are about, and the place in these of each pair."""
    used, place = np.unique(given.pairs[:, 0], return_inverse=True)
    return given.states[torch.from_numpy(used)], place


@torch.inference_mode()
def ours(given: Work) -> Scores:
    """All texts of an image after each other, with keys and values made once."""
    images, captions = given.pairs.T
    scores = np.empty(len(given.pairs), np.float32)
    states, image = _about(given)
    for places, found in match_states(given.backbone, states, image, given.tokens, captions, BATCH):
        scores[places] = found
    return dict(zip(zip(images.tolist(), captions.tolist(), strict=True), scores.tolist(), strict=True))


@torch.inference_mode()
def lavis(given: Work) -> Scores:
    """One forward per query."""
    scores: Scores = {}
    for image, candidates in given.from_images:
        states = given.states[image].repeat(len(candidates), 1, 1)
        found = _forward(given, candidates, states)
        scores.update(zip(((image, int(caption)) for caption in candidates), found, strict=True))
    for caption, candidates in given.from_texts:
        found = _forward(given, np.repeat(caption, len(candidates)), given.states[torch.from_numpy(candidates)])
        scores.update(zip(((int(image), caption) for image in candidates), found, strict=True))
    return scores


def _forward(given: Work, captions: np.ndarray, states: Tensor) -> list[float]:
    """The peer's scores of padded captions [B], each with states [B, T, 1024] of its own."""
    model: Any = given.backbone.model
    ids, mask = (given.tokens[part][torch.from_numpy(captions)] for part in ("input_ids", "attention_mask"))
    ids[:, 0] = given.backbone.matching_token
    output = model.text_encoder(
        ids.to(states.device),
        attention_mask=mask.to(states.device),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long, device=states.device),
    )
    found: list[float] = model.itm_head(output.last_hidden_state[:, 0, :])[:, 1].tolist()
    return found


@torch.inference_mode()
def products(given: Work) -> Tensor:
    """The matrix products that no implementation can spare: linear layers and attention to the images, no padding.

    Keys and values once per image; after the last layer's attention to the text only [ENC] goes on. Attention of
    captions to themselves (under 1 %) is left out.
    """
    text: Any = given.backbone.model.text_encoder
    lengths = given.tokens["attention_mask"].sum(1).numpy()[given.pairs[:, 1]]
    device = given.states.device
    states, images = _about(given)
    layers = text.encoder.layer
    result = torch.zeros((), device=device)
    for number, layer in enumerate(layers):
        own, other = layer.attention, layer.crossattention
        for projection in (other.self.key, other.self.value):
            keys = states.flatten(0, 1) @ projection.weight.T
        keys = keys.view(len(states), -1, 12, 64)
        for image in range(len(states)):
            of_image = lengths[images == image]
            every = torch.zeros(int(of_image.sum()), 768, device=device)
            asking = every if number < len(layers) - 1 else every[: len(of_image)]
            for part, projections in (
                (every, (own.self.key, own.self.value)),
                (asking, (own.self.query, own.output.dense, other.self.query, other.output.dense)),
            ):
                for projection in projections:
                    rows = part @ projection.weight.T
            looks = rows.view(-1, 12, 64).transpose(0, 1) @ keys[image].permute(1, 2, 0)  # [12, R, T]
            result = result + (looks @ keys[image].transpose(0, 1))[0, 0, 0]
            result = result + (asking @ layer.intermediate.dense.weight.T @ layer.output.dense.weight.T)[0, 0]
    return result


@torch.inference_mode()
def agree(inputs: Callable[[], Work], outputs: dict[str, Scores]) -> dict[str, str]:
    """All of our scores beside the peer's forward on the same pairs, and beside what it found while it was timed."""
    given, found, timed = inputs(), outputs["ours"], outputs[PEER]
    assert found.keys() == {(image, caption) for image, caption in given.pairs.tolist()}, "pairs without a score"
    expected: Scores = {}
    for start in range(0, len(given.pairs), BATCH):
        part = given.pairs[start : start + BATCH]
        scores = _forward(given, part[:, 1], given.states[torch.from_numpy(part[:, 0])])
        expected.update(zip(((image, caption) for image, caption in part.tolist()), scores, strict=True))
    spread = np.std(list(expected.values()))
    assert spread > 1e-2, f"scores of all pairs are the same but for {spread:.1e}: anything would agree"
    both = found.keys() & timed.keys()
    assert both, "the peer was timed on other pairs alone"
    difference = max(
        *(abs(found[pair] - score) for pair, score in expected.items()),
        *(abs(found[pair] - timed[pair]) for pair in both),
    )
    assert difference <= 1e-5, f"scores differ by {difference:.1e}"
    return {
        PEER: f"all {len(found)} pairs of ours differ by {difference:.0e} at most (standard deviation {spread:.2f})"
    }
