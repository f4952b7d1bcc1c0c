"""The captioner of this project in every way of decoding: with its cache and in batches as without, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.reference import decoding as slow
from xmodal_kedro.captioning.decode import Captioner, decode
from xmodal_kedro.captioning.ensemble import EnsembleCaptioner, VocabularyMismatchError
from xmodal_kedro.config.decoding import DecodingConfig
from xmodal_kedro.models.captioner import Captioner as GPTCaptioner
from xmodal_kedro.models.characters import Characters
from xmodal_kedro.models.gpt import GPT, GPTSizes

TEXTS = ["一只狗在草地上奔跑", "两个人骑车"]
PIXELS = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(2))
METHODS = [
    DecodingConfig(max_steps=9),
    DecodingConfig(method="beam", max_steps=9, beams=3),
    DecodingConfig(method="nucleus", max_steps=9, top_p=0.83, seed=5),
]


def gpt_captioner(seed: int = 0, texts: list[str] = TEXTS) -> GPTCaptioner:
    vocabulary = Characters.learn(texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gpt = GPT(GPTSizes(vocab_size=len(vocabulary), layers=2, heads=2, width=16, block_size=12))
        captioner = GPTCaptioner(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 16)), gpt, vocabulary)
        for parameter in captioner.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.6)
    return captioner.eval()


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_captions_are_those_of_the_reference(config: DecodingConfig) -> None:
    captioner = gpt_captioner()
    vocabulary = captioner.vocabulary

    def following(row: int) -> slow.Next:
        @torch.no_grad()
        def log_probabilities(ids: tuple[int, ...]) -> list[float]:
            # The last id is not read: the place before it predicts it.
            whole = torch.tensor([[vocabulary.start, *ids, vocabulary.pad]])
            return captioner(PIXELS[row : row + 1], whole)[0, -1].log_softmax(0).tolist()

        return log_probabilities

    protocol: Captioner[Any] = captioner
    captions = decode(protocol, PIXELS, config)
    expected = [slow.decoded(following(row), vocabulary.end, config, row) for row in range(len(PIXELS))]
    assert [(caption.ids, caption.ended) for caption in captions] == [(ids, ended) for ids, _, ended in expected]
    assert [one.log_probability for one in captions] == pytest.approx([total for _, total, _ in expected], abs=1e-4)
    assert len({caption.text for caption in captions}) > 2


def test_captioners_of_one_vocabulary_can_be_mixed_and_others_are_refused() -> None:
    members = {"0923": gpt_captioner(0), "0920": gpt_captioner(1), "0913": gpt_captioner(2)}
    published = decode(EnsembleCaptioner(members, (0.5, 0.3, 0.2)), PIXELS, METHODS[1])
    alone = [decode(member, PIXELS, METHODS[1]) for member in members.values()]
    assert [one.ids for one in published] not in [[one.ids for one in captions] for captions in alone]
    assert decode(EnsembleCaptioner(members, (0, 1, 0)), PIXELS, METHODS[1]) == alone[1]
    other = gpt_captioner(3, ["一只猫"])
    known = members["0923"].vocabulary.tokens
    first = next(row for row, token in enumerate(other.vocabulary.tokens) if token != known[row])
    with pytest.raises(VocabularyMismatchError, match=rf"'0923' and 'other' cannot be mixed.*: id {first} is "):
        EnsembleCaptioner({**members, "other": other})
