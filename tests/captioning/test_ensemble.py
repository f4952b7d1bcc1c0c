"""A mixture says in every step what the formula says of its members; members that cannot be mixed are named."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.captioning.toys import END, GRUCaptioner, Letters, TableCaptioner, random_table
from tests.reference import decoding as slow
from xmodal_kedro.captioning.decode import decode
from xmodal_kedro.captioning.ensemble import EnsembleCaptioner, VocabularyMismatchError
from xmodal_kedro.config.decoding import DecodingConfig

PUBLISHED = (0.5, 0.3, 0.2)
METHODS = [
    DecodingConfig(max_steps=9),
    DecodingConfig(method="beam", beams=4, max_steps=7),
    DecodingConfig(method="nucleus", max_steps=9, seed=2),
]
MIXES: tuple[Literal["logits", "probabilities"], ...] = ("logits", "probabilities")
VECTORS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * 3


def tables(count: int = 3) -> dict[str, TableCaptioner]:
    choices = [0.0, 0.0, math.log(2), math.log(3), math.log(7)]
    return {f"m{seed}": TableCaptioner(random_table(seed, choices, ending=0.3)) for seed in range(count)}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("weights", [PUBLISHED, (1, 1, 1), (3, 0, 1)])
def test_every_step_is_the_weighted_mean(mix: Any, weights: tuple[float, ...]) -> None:
    members = {f"m{seed}": GRUCaptioner(seed) for seed in range(3)}
    shares = [weight / sum(weights) for weight in weights]

    def following(image: Tensor) -> slow.Next:
        parts = [member.following(image) for member in members.values()]

        def mixed(ids: tuple[int, ...]) -> list[float]:
            said = [part(ids) for part in parts]  # log-probabilities are logits, up to what the softmax takes away
            columns = zip(*said, strict=True)
            if mix == "logits":
                means = [sum(share * value for share, value in zip(shares, column, strict=True)) for column in columns]
                total = math.log(sum(math.exp(mean) for mean in means))
                return [mean - total for mean in means]
            return [
                math.log(sum(share * math.exp(value) for share, value in zip(shares, column, strict=True)))
                for column in columns
            ]

        return mixed

    ensemble = EnsembleCaptioner(members, weights, mix)
    captions = decode(ensemble, VECTORS, METHODS[0])
    expected = [slow.greedy(following(image), END, 9) for image in VECTORS]
    assert [(one.ids, one.ended) for one in captions] == [(ids, ended) for ids, _, ended in expected]
    assert [one.log_probability for one in captions] == pytest.approx([total for _, total, _ in expected], abs=1e-4)
    captions = decode(ensemble, VECTORS, METHODS[1])
    expected = [slow.beam(following(image), END, 7, 4, 1.0) for image in VECTORS]
    assert [(one.ids, one.ended) for one in captions] == [(ids, ended) for ids, _, ended in expected]


@pytest.mark.parametrize("config", METHODS, ids=str)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("weights", [None, PUBLISHED])
def test_identical_members_say_what_one_says(config: DecodingConfig, mix: Any, weights: Any) -> None:
    one = TableCaptioner(random_table(5, (0.0, 0.0, math.log(2), math.log(3)), ending=0.3))
    ensemble = EnsembleCaptioner({"a": one, "b": one, "c": one}, weights, mix)
    images = torch.arange(9)
    mixed, alone = decode(ensemble, images, config), decode(one, images, config)
    assert [(caption.ids, caption.text, caption.ended) for caption in mixed] == [
        (caption.ids, caption.text, caption.ended) for caption in alone
    ]
    expected = [caption.log_probability for caption in alone]
    assert [caption.log_probability for caption in mixed] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("config", METHODS, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_all_weight_on_one_member_is_that_member_to_the_bit(config: DecodingConfig, mix: Any) -> None:
    members, images = tables(), torch.arange(9)
    for place, name in enumerate(members):
        weights = [0.0, 0.0, 0.0]
        weights[place] = 2.0
        expected = decode(members[name], images, config)
        for member in members.values():
            member.sizes.clear()
        assert decode(EnsembleCaptioner(members, weights, mix), images, config) == expected
        assert [name for name, member in members.items() if member.sizes] == [name]  # the others are not even asked


def test_captions_of_an_ensemble_are_not_those_of_a_member() -> None:
    members, images = tables(), torch.arange(30)

    def texts(captioner: Any) -> list[str]:
        return [caption.text for caption in decode(captioner, images, METHODS[0])]

    mixed = {mix: texts(EnsembleCaptioner(members, mix=mix)) for mix in MIXES}
    alone = [texts(member) for member in members.values()]
    assert mixed["logits"] != mixed["probabilities"]
    assert mixed["logits"] not in alone
    assert mixed["probabilities"] not in alone


def test_logits_let_every_member_rule_tokens_out_and_probabilities_none() -> None:
    def only(token: int) -> TableCaptioner:
        return TableCaptioner(
            lambda image, ids: [
                0.0 if index == (END if ids else token) or (index == 4 and not ids) else -math.inf for index in range(6)
            ]
        )

    members = {"a": only(2), "b": only(3)}
    image = torch.arange(1)
    assert decode(EnsembleCaptioner(members, (0.6, 0.4), "logits"), image, METHODS[0])[0].text == "c"
    caption = decode(EnsembleCaptioner(members, (0.6, 0.4), "probabilities"), image, METHODS[0])[0]
    assert caption.text == "c"
    assert caption.log_probability == pytest.approx(math.log(0.5))
    refusing = {"a": only(2), "b": TableCaptioner(lambda image, ids: [-math.inf] * 6)}
    assert decode(EnsembleCaptioner(refusing, mix="logits"), image, METHODS[0])[0].ended is False
    caption = decode(EnsembleCaptioner(refusing, mix="probabilities"), image, METHODS[0])[0]
    assert (caption.text, caption.ended) == ("a", True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Letters(tokens=("[CLS]", "[SEP]", "a", "x", "c", "y")), "id 3 is 'b' for 'first' and 'x' for 'third'"),
        (Letters(tokens=("[CLS]", "[SEP]", "a", "b")), "id 4 is 'c' for 'first' and no token for 'third'"),
        (
            Letters(tokens=("[CLS]", "[SEP]", "a", "b", "c", "d", "e")),
            "id 6 is no token for 'first' and 'e' for 'third'",
        ),
        (Letters(end=2), "captions of 'first' end with id 1, those of 'third' with id 2"),
        (Letters(start=3), "captions of 'first' start with id 0, those of 'third' with id 3"),
    ],
)
def test_members_of_different_vocabularies_are_named_with_the_first_difference(other: Letters, message: str) -> None:
    table = random_table(0, (0.0, 1.0))
    members = {"first": TableCaptioner(table), "second": TableCaptioner(table), "third": TableCaptioner(table, other)}
    with pytest.raises(VocabularyMismatchError, match=f"'first' and 'third' cannot be mixed.*{re.escape(message)}"):
        EnsembleCaptioner(members)


def test_members_that_give_logits_of_more_tokens_than_they_have_are_refused() -> None:
    padded = {"m1": TableCaptioner(lambda image, ids: [0.0] * 8)}  # as embeddings that were rounded up to a multiple
    with pytest.raises(VocabularyMismatchError, match=r"logits of 6, 8 tokens, though their tokenizers are equal"):
        decode(EnsembleCaptioner(tables(1) | padded, None, "logits"), torch.arange(2), METHODS[0])


def test_a_member_without_a_say_may_have_another_vocabulary() -> None:
    table = random_table(0, (0.0, 1.0))
    other = TableCaptioner(table, Letters(tokens=("[CLS]", "[SEP]", "a", "x", "c", "y")))
    for members, weights in (
        ({"first": TableCaptioner(table), "silent": other}, (1.0, 0.0)),
        ({"silent": other, "first": TableCaptioner(table)}, (0.0, 1.0)),
    ):
        assert EnsembleCaptioner(members, weights).vocabulary == Letters()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.5), "2 weights for the 3 captioners m0, m1, m2"),
        ((0.5, 0.3, -0.2), r"\[0.5, 0.3, -0.2\]: give numbers from 0 on"),
        ((0.0, 0.0, 0.0), "one of them above 0"),
        ((math.nan, 1.0, 1.0), "give numbers from 0 on"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnsembleCaptioner(tables(), weights)


def test_members_and_a_way_to_mix_them_are_needed() -> None:
    with pytest.raises(ValueError, match="needs members"):
        EnsembleCaptioner({})
    with pytest.raises(ValueError, match="mixes 'logits' or 'probabilities'"):
        EnsembleCaptioner(tables(), mix="votes")  # type: ignore[arg-type]


def test_an_ensemble_is_a_captioner_and_can_be_a_member() -> None:
    members, images = tables(), torch.arange(9)
    inner = EnsembleCaptioner({name: members[name] for name in ("m1", "m2")}, (0.3, 0.2))
    nested = EnsembleCaptioner({"m0": members["m0"], "others": inner}, (0.5, 0.5))
    flat = EnsembleCaptioner(members, PUBLISHED)
    expected = [caption.ids for caption in decode(flat, images, METHODS[1])]
    assert [caption.ids for caption in decode(nested, images, METHODS[1])] == expected
