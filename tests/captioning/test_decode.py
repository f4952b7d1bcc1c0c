"""Decoding in batches gives the captions of the slow reference, one at a time, from all ids so far."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.captioning.toys import END, GRUCaptioner, TableCaptioner, random_table
from tests.reference import decoding as slow
from xmodal_kedro.captioning.beam import best
from xmodal_kedro.captioning.captioner import log_probabilities
from xmodal_kedro.captioning.decode import Caption, decode, decode_batches
from xmodal_kedro.config.decoding import DecodingConfig

IMAGES = torch.arange(11)
TIES = (0.0, 0.0, math.log(2), math.log(3))
DEAD_ENDS = (0.0, math.log(2), -math.inf, -math.inf)
UNEVEN = {"choices": TIES, "ending": 0.4}
EVERY_METHOD = [
    DecodingConfig(method="greedy", max_steps=9),
    DecodingConfig(method="beam", max_steps=9, beams=3),
    DecodingConfig(method="beam", max_steps=6, beams=7, length_penalty=0.0),
    DecodingConfig(method="nucleus", max_steps=9, top_p=0.83, seed=5),
]


def check(captions: list[Caption], expected: list[slow.Result]) -> None:
    assert [(caption.ids, caption.ended) for caption in captions] == [(ids, ended) for ids, _, ended in expected]
    np.testing.assert_allclose(
        [caption.log_probability for caption in captions], [total for _, total, _ in expected], atol=1e-4
    )
    assert all(END not in caption.ids for caption in captions)


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_tables_full_of_ties_are_decoded_as_by_the_reference(config: DecodingConfig, seed: int) -> None:
    captioner = TableCaptioner(random_table(seed, **UNEVEN))
    captions = decode(captioner, IMAGES, config)
    check(captions, [slow.decoded(captioner.following(image), END, config, image) for image in IMAGES.tolist()])
    if config.length_penalty:  # without, the best captions are the shortest
        assert len({len(caption.ids) for caption in captions}) > 2
    assert captions[0].text == captioner.vocabulary.text(captions[0].ids)


@pytest.mark.parametrize("config", EVERY_METHOD[:3], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_dead_ends_too(config: DecodingConfig, seed: int) -> None:
    captioner = TableCaptioner(random_table(seed, DEAD_ENDS))
    captions = decode(captioner, IMAGES, config)
    check(captions, [slow.decoded(captioner.following(image), END, config, image) for image in IMAGES.tolist()])


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_where_no_token_may_follow_at_all_the_caption_is_what_there_is(config: DecodingConfig) -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        return [-math.inf] * 6 if len(ids) == image else [-math.inf, -math.inf, 0.0, 1.0, -math.inf, -math.inf]

    captions = decode(TableCaptioner(logits), torch.arange(3), config)
    assert [len(caption.ids) for caption in captions] == [0, 1, 2]
    assert not any(caption.ended for caption in captions)
    assert captions[0] == Caption((), "", 0.0, False)
    if config.method != "nucleus":
        assert captions[2].text == "bb"
        assert captions[2].log_probability == pytest.approx(2 * -math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_a_recurrent_captioner_is_decoded_as_by_the_reference(config: DecodingConfig) -> None:
    captioner = GRUCaptioner(seed=3)
    images = torch.randn(13, 4, generator=torch.Generator().manual_seed(0)) * 3
    captions = decode(captioner, images, config)
    check(captions, [slow.decoded(captioner.following(image), END, config, row) for row, image in enumerate(images)])
    assert len({caption.ids for caption in captions}) > 3


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_the_size_of_the_batch_changes_no_caption(config: DecodingConfig) -> None:
    table, recurrent = TableCaptioner(random_table(1, **UNEVEN)), GRUCaptioner(seed=4)
    vectors = torch.randn(11, 4, generator=torch.Generator().manual_seed(1)) * 3
    for captioner, images in ((table, IMAGES), (recurrent, vectors)):
        whole = decode(captioner, images, config)
        for size in (1, 2, 4, 10):
            parts = list(decode_batches(captioner, images.split(size), config))
            assert [(part.ids, part.ended) for part in parts] == [(one.ids, one.ended) for one in whole]
        order = torch.tensor([7, 3, 0])
        if config.method != "nucleus":  # it draws by the number of the image
            assert [one.ids for one in decode(captioner, images[order], config)] == [whole[row].ids for row in order]


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    captioner = TableCaptioner(random_table(seed, **UNEVEN))
    greedy = decode(captioner, IMAGES, DecodingConfig(max_steps=9))
    beam = decode(captioner, IMAGES, DecodingConfig(method="beam", beams=1, max_steps=9))
    assert [(one.ids, one.ended) for one in beam] == [(one.ids, one.ended) for one in greedy]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_the_tree_finds_the_best_caption(seed: int, penalty: float) -> None:
    captioner = TableCaptioner(random_table(seed, (*TIES, math.log(5)), tokens=5))
    config = DecodingConfig(method="beam", beams=4**4, max_steps=4, length_penalty=penalty)
    captions = decode(captioner, IMAGES[:5], config)
    check(captions, [slow.exhaustive(captioner.following(image), END, 4, penalty) for image in range(5)])


def test_a_beam_finds_what_greedy_misses_and_normalises_by_length() -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        after = {
            (): {2: 0.6, 3: 0.4},  # "a" first, but all that follows it is unlikely
            (2,): {END: 0.1, 2: 0.3, 3: 0.3, 4: 0.3},
            (3,): {END: 0.5, 4: 0.5},
            (3, 4): {5: 1.0},
            (3, 4, 5): {END: 1.0},
        }.get(ids, {END: 1.0})
        return [math.log(after[token]) if token in after else -math.inf for token in range(6)]

    def text(**settings: object) -> str:
        return decode(TableCaptioner(logits), IMAGES[:1], DecodingConfig.model_validate(settings))[0].text

    assert text(method="greedy") == "aa"
    assert text(method="beam", beams=2, length_penalty=0.0) == "b"  # 0.2, as "bcd", but lower ids
    assert text(method="beam", beams=2, length_penalty=1.0) == "bcd"  # 0.2 over four tokens, not over two


def test_of_equal_captions_under_way_the_lowest_ids_win_though_others_were_ahead() -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        after = {(): {2: 1, 3: 2, 4: 1}, (2,): {3: 1, 4: 2, 5: 1}}.get(ids, dict.fromkeys((2, 3, 4, 5), 1))
        return [math.log(after[token]) if token in after else -math.inf for token in range(6)]

    config = DecodingConfig(method="beam", beams=2, max_steps=2)
    assert decode(TableCaptioner(logits), IMAGES[:1], config)[0].text == "ac"  # 1/4 * 1/2, as "ba": 1/2 * 1/4


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_a_caption_may_end_at_once(config: DecodingConfig) -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        return [-math.inf, 9.0 if image % 2 == 0 or len(ids) == 3 else -math.inf, 0.0, -1.0, -2.0, -math.inf]

    captions = decode(TableCaptioner(logits), torch.arange(4), config.model_copy(update={"top_p": 0.9}))
    assert [(captions[row].ids, captions[row].ended) for row in (0, 2)] == [((), True)] * 2
    assert captions[0].log_probability == pytest.approx(
        9 - math.log(math.exp(9) + 1 + math.exp(-1) + math.exp(-2)), abs=1e-6
    )
    assert [len(captions[row].ids) for row in (1, 3)] == [3, 3]


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_captions_are_cut_after_the_last_step(config: DecodingConfig) -> None:
    captioner = TableCaptioner(lambda image, ids: [-math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0])
    for caption in decode(captioner, IMAGES[:3], config):
        assert len(caption.ids) == config.max_steps
        assert not caption.ended
        assert caption.log_probability == pytest.approx(-config.max_steps * math.log(4), rel=1e-5)
        if config.method != "nucleus":
            assert set(caption.text) == {"a"}  # of equals the lowest id


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_finished_captions_leave_the_batch(config: DecodingConfig) -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:  # image i writes i letters
        end = 0.0 if len(ids) == image else -math.inf
        return [-math.inf, end, *[-math.inf if end == 0.0 else 0.0] * 4]

    captioner = TableCaptioner(logits)
    captions = decode(captioner, torch.arange(8), config)
    beams = config.beams if config.method == "beam" else 1
    assert [len(caption.ids) for caption in captions[: config.max_steps]] == list(range(min(8, config.max_steps)))
    assert captioner.sizes[0] == 8
    assert captioner.sizes[-1] == beams * (8 - len(captioner.sizes) + 1)
    assert all(size <= beams * (8 - step) for step, size in enumerate(captioner.sizes))


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
def test_no_images_have_no_captions(config: DecodingConfig) -> None:
    captioner = TableCaptioner(random_table(0, TIES))
    assert decode(captioner, IMAGES[:0], config) == []
    assert list(decode_batches(captioner, [], config)) == []
    assert captioner.sizes == []


@pytest.mark.parametrize("config", EVERY_METHOD, ids=str)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_is_an_error_and_no_caption(config: DecodingConfig, broken: float) -> None:
    def logits(image: int, ids: tuple[int, ...]) -> list[float]:
        return [-math.inf, -math.inf, 0.0, broken if len(ids) == 1 and image == 2 else 1.0, 0.0, 0.0]

    with pytest.raises(FloatingPointError, match="logits of token 1 are NaN or infinite"):
        decode(TableCaptioner(logits), IMAGES[:4], config)


def test_nucleus_sampling_draws_from_the_nucleus_alone_as_often_as_it_should() -> None:
    probabilities = [0.0, 0.05, 0.4, 0.3, 0.2, 0.05]
    captioner = TableCaptioner(lambda image, ids: [math.log(p) if p else -math.inf for p in probabilities])
    config = DecodingConfig(method="nucleus", top_p=0.75, max_steps=1, seed=3)
    counts = Counter(caption.text for caption in decode(captioner, torch.arange(4000), config))
    assert counts.keys() == {"a", "b", "c"}  # 0.4 + 0.3 are not enough
    for letter, probability in (("a", 0.4 / 0.9), ("b", 0.3 / 0.9), ("c", 0.2 / 0.9)):
        assert abs(counts[letter] / 4000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_nucleus_sampling_has_its_limits_and_its_seeds() -> None:
    captioner = TableCaptioner(random_table(2, **UNEVEN))

    def ids(**settings: object) -> list[tuple[int, ...]]:
        config = DecodingConfig.model_validate({"method": "nucleus", "max_steps": 9, **settings})
        return [caption.ids for caption in decode(captioner, IMAGES, config)]

    greedy = ids(method="greedy")
    assert ids(temperature=1e-4, top_p=0.01) == greedy
    assert ids(temperature=1e4, top_p=1.0) != ids(temperature=1e-4, top_p=1.0)
    assert ids(top_p=1e-6) == greedy  # of equals the lowest id is the nucleus
    assert ids(seed=1) == ids(seed=1)
    assert ids(seed=1) != ids(seed=2)
    assert ids(seed=1) != greedy
    # Images with the same logits are drawn for differently, and a caption does not depend on how long it may become.
    same = TableCaptioner(lambda image, ids: captioner.logits(0, ids))
    config = DecodingConfig(method="nucleus", max_steps=9)
    captions = decode(same, IMAGES, config)
    assert len({caption.ids for caption in captions}) > 3
    shorter = decode(same, IMAGES, config.model_copy(update={"max_steps": 4}))
    assert [caption.ids[:4] for caption in captions] == [caption.ids for caption in shorter]


@pytest.mark.parametrize(("rows", "columns", "count"), [(9, 40, 6), (5, 7, 7), (4, 3, 10), (1, 1, 1), (6, 1000, 10)])
def test_the_best_of_equals_are_the_first_ones(rows: int, columns: int, count: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    for levels in (1, 2, 5, 10_000):
        scores = torch.randint(levels, (rows, columns), generator=generator).float()
        scores[torch.rand(rows, columns, generator=generator) < 0.3] = -torch.inf
        values, places = best(scores, count)
        ordered = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, ordered.values[:, :count])
        real = values > -torch.inf
        assert torch.equal(places[real], ordered.indices[:, :count][real])


def test_probabilities_are_those_of_single_precision_whatever_the_logits_are() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [-torch.inf] * 3], dtype=torch.float16)
    result = log_probabilities(logits)
    assert result.dtype == torch.float32
    assert torch.allclose(result[0], torch.tensor([1.0, 2.0, -torch.inf]).log_softmax(0))
    assert (result[1] == -torch.inf).all()
