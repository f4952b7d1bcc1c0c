"""BLIP: scores of transformers, training of the papers, a temperature of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval, BlipProcessor

from tests.conftest import SHARED
from tests.models.small import SIZE, SMALL, TEXTS, small_backbone
from tests.reference import blip as reference
from tests.reference.contrastive import contrastive_loss
from xmodal_kedro.config.member import BackboneConfig, LossConfig, MomentumConfig, TrainConfig
from xmodal_kedro.losses.momentum import NO_KEY, FeatureQueue
from xmodal_kedro.models import build
from xmodal_kedro.models.backbone import ArchitectureError, Batch, Tokens, TrainState
from xmodal_kedro.models.blip import Blip

VOCABULARY = SHARED / "tokenizers" / "bert_base_uncased" / "vocab.txt"
FILE = "model.safetensors"


def blip(seed: int = 0) -> Blip:
    backbone = small_backbone("blip", seed)
    assert isinstance(backbone, Blip)
    return backbone


def pixels(count: int, seed: int = 0, side: int = SIZE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def with_enc(backbone: Blip, tokens: Tokens) -> Tokens:
    ids = tokens["input_ids"].clone()
    ids[:, 0] = backbone.tokenizer.get_vocab()["[ENC]"]
    return {**tokens, "input_ids": ids}


def loss_config(**momentum: Any) -> LossConfig:
    return LossConfig(momentum=MomentumConfig(**momentum))


def train_config(loss: LossConfig, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "batch_size": 2, "lr": 1e-3, "loss": loss, **changes})


def state_of(loss: LossConfig, step: int = 0, steps_per_epoch: int = 10) -> TrainState:
    return TrainState(step, 100, steps_per_epoch, loss)


# --- scores


@torch.no_grad()
def test_scores_are_those_of_transformers_on_the_saved_files(tmp_path: Path) -> None:
    backbone = blip()
    backbone.save_pretrained(tmp_path)
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    processor = BlipProcessor.from_pretrained(tmp_path)
    packed = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    inputs = processor(text=TEXTS[:3], images=list(packed.permute(0, 3, 1, 2)), return_tensors="pt", padding=True)
    shown = backbone.image_transform(train=False)(packed)
    tokens = backbone.tokenize(TEXTS[:3])
    torch.testing.assert_close(shown, inputs["pixel_values"], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens["input_ids"], inputs["input_ids"])
    image = F.normalize(backbone.encode_image(shown), dim=-1)
    text = F.normalize(backbone.encode_text(tokens), dim=-1)
    sizes = {"pixel_values": shown, "attention_mask": tokens["attention_mask"]}
    cosines = model(tokens["input_ids"], use_itm_head=False, **sizes).itm_score
    torch.testing.assert_close(image @ text.T, cosines, atol=1e-6, rtol=1e-5)
    scores = model(with_enc(backbone, tokens)["input_ids"], **sizes).itm_score[:, 1]
    torch.testing.assert_close(backbone.match(backbone.image_states(shown), tokens), scores, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model(tokens["input_ids"], **sizes).itm_score[:, 1], scores, atol=1e-4)


@torch.no_grad()
def test_a_pair_scores_the_same_alone_in_a_batch_and_padded() -> None:
    backbone = blip()
    states, tokens = backbone.image_states(pixels(len(TEXTS))), backbone.tokenize(TEXTS)
    before = {name: values.clone() for name, values in tokens.items()}
    together = backbone.match(states, tokens)
    alone = [backbone.match(states[row : row + 1], backbone.tokenize([text])) for row, text in enumerate(TEXTS)]
    wide = {name: F.pad(values, (0, 5)) for name, values in tokens.items()}
    assert states.shape == (len(TEXTS), 1 + (SIZE // 8) ** 2, 24)
    assert together.shape == (len(TEXTS),)
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(backbone.match(states, wide), together, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(tokens[name], before[name]) for name in tokens)
    assert backbone.match(states[:0], backbone.tokenize([])).shape == (0,)
    assert not torch.allclose(backbone.match(states.flip(0), tokens), together, atol=1e-5)


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="the English vocabulary is in ../shared/data, which is not here")
def test_the_vocabulary_of_bert_gives_the_ids_of_blip(tmp_path: Path) -> None:
    small = SMALL["blip"].architecture or {}
    backbone = build(BackboneConfig(name="blip", architecture={**small, "vocabulary": str(VOCABULARY)}))
    assert isinstance(backbone, Blip)
    assert backbone.tokenize(["A red car."])["input_ids"].tolist() == [[101, 1037, 2417, 2482, 1012, 102]]
    assert backbone.matching_token == 30523
    assert backbone.tokenizer.bos_token_id == 30522
    assert backbone.model.config.text_config.vocab_size == 30524  # type: ignore[union-attr]
    backbone.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    for vocabulary in (tmp_path / "vocab.txt", VOCABULARY):  # as we save it, and as the hub has it
        (tmp_path / "vocab.txt").write_bytes(vocabulary.read_bytes())
        again = Blip.from_pretrained(tmp_path)
        assert again.matching_token == 30523
        assert torch.equal(again.tokenize(TEXTS)["input_ids"], backbone.tokenize(TEXTS)["input_ids"])


def test_the_context_is_what_the_model_allows_until_it_is_limited() -> None:
    backbone = blip()
    assert backbone.tokenize(["car " * 100])["input_ids"].shape == (1, 64)
    backbone.limit_context(10)
    assert backbone.tokenize(["car " * 100])["input_ids"].shape == (1, 10)


# --- training


def slow_step(
    backbone: Blip,
    batch: Batch,
    keys: list[int],
    alignment: Any,
) -> tuple[Tensor, Tensor]:
    """ITA by `alignment` and ITM of two pairs, whose negatives can only be each other, by transformers' forward."""
    model: Any = backbone.model
    ids, enc = batch.tokens["input_ids"], with_enc(backbone, batch.tokens)["input_ids"]
    mask = batch.tokens["attention_mask"]
    states = model.vision_model(batch.pixels).last_hidden_state
    image = F.normalize(model.vision_proj(states[:, 0]), dim=-1)
    text = F.normalize(model.text_proj(model.text_encoder(ids, mask).last_hidden_state[:, 0]), dim=-1)
    other = [1, 0]
    right = model(enc, batch.pixels, attention_mask=mask).itm_score
    if keys[0] == keys[1]:
        return alignment(image, text), reference.matching_loss(right, [])
    wrong_images = model(enc, batch.pixels[other], attention_mask=mask).itm_score
    wrong_texts = model(enc[other], batch.pixels, attention_mask=mask[other]).itm_score
    return alignment(image, text), reference.matching_loss(right, [*wrong_images, *wrong_texts])


def check_gradients(backbone: Blip, losses: dict[str, Tensor], ita: Tensor, itm: Tensor) -> None:
    torch.testing.assert_close(losses["ita"], ita.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["itm"], itm.float(), atol=1e-5, rtol=1e-5)
    parameters = dict(backbone.named_parameters())
    ours = torch.autograd.grad(losses["loss"], list(parameters.values()))
    theirs = torch.autograd.grad(ita + itm, list(parameters.values()))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("keys", [[4, 9], [4, 4]])
def test_without_momentum_a_step_is_the_contrastive_loss_and_matching(keys: list[int]) -> None:
    backbone = blip()
    backbone.begin_training(train_config(LossConfig()))
    batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]), torch.tensor(keys))
    losses = backbone.training_step(batch, state_of(LossConfig()))
    scale, tensor = backbone.logit_scale, torch.tensor(keys)
    ita, itm = slow_step(backbone, batch, keys, lambda image, text: contrastive_loss(image, text, scale, tensor))
    check_gradients(backbone, losses, ita, itm)


def test_with_momentum_steps_are_those_of_the_papers() -> None:
    """Four steps of two pairs through a queue of three, the weights moving in between."""
    backbone = blip()
    loss = loss_config(queue_size=3, momentum=0.9, alpha=0.4, ramp_epochs=2)
    backbone.begin_training(train_config(loss, seed=5))
    average = copy.deepcopy(backbone.model)
    start = FeatureQueue.random(3, 16, 5, torch.device("cpu"))
    ring = [[start.image[row], start.text[row], NO_KEY] for row in range(3)]
    place = 0
    for step, keys in enumerate([[0, 1], [2, 0], [1, 1], [0, 3]]):
        batch = Batch(pixels(2, seed=step), backbone.tokenize(TEXTS[step : step + 2]), torch.tensor(keys))
        losses = backbone.training_step(batch, state_of(loss, step, steps_per_epoch=2))
        with torch.no_grad():
            trained = dict(backbone.model.named_parameters())
            for name, parameter in average.named_parameters():
                parameter.copy_(0.9 * parameter + 0.1 * trained[name])
            image_m, text_m = (F.normalize(rows, dim=-1) for rows in features_of(average, batch))
        ita, itm = slow_step(
            backbone,
            batch,
            keys,
            lambda image, text, image_m=image_m, text_m=text_m, keys=keys, step=step: reference.alignment_loss(
                image,
                text,
                image_m,
                text_m,
                torch.stack([entry[0] for entry in ring]),
                torch.stack([entry[1] for entry in ring]),
                keys,
                [entry[2] for entry in ring],
                torch.exp(-backbone.logit_scale),
                [0.0, 0.1, 0.2, 0.3][step],
            ),
        )
        check_gradients(backbone, losses, ita, itm)
        for row, key in enumerate(keys):
            ring[place] = [image_m[row], text_m[row], key]
            place = (place + 1) % 3
        with torch.no_grad():
            for index, parameter in enumerate(backbone.parameters()):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))


def features_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    ids, mask = batch.tokens["input_ids"], batch.tokens["attention_mask"]
    image = model.vision_proj(model.vision_model(batch.pixels).last_hidden_state[:, 0])
    return image, model.text_proj(model.text_encoder(ids, mask).last_hidden_state[:, 0])


def test_the_queue_is_no_longer_than_an_epoch() -> None:
    backbone, loss = blip(), loss_config(queue_size=1000)
    backbone.begin_training(train_config(loss))
    batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]), torch.tensor([0, 1]))
    backbone.training_step(batch, state_of(loss, steps_per_epoch=4))
    assert backbone.average is not None
    assert backbone.average.queue is not None
    assert backbone.average.queue.keys.tolist() == [0, 1, *[NO_KEY] * 6]


def test_without_keys_every_pair_of_every_step_is_its_own() -> None:
    backbone, loss = blip(), loss_config(queue_size=6)
    backbone.begin_training(train_config(loss))
    for step in range(3):
        losses = backbone.training_step(Batch(pixels(2), backbone.tokenize(TEXTS[:2])), state_of(loss, step))
        assert losses["loss"].isfinite()
    assert backbone.average is not None
    assert backbone.average.queue is not None
    assert len(set(backbone.average.queue.keys.tolist()) - {NO_KEY}) == 6


def test_training_leaves_no_trace_in_what_is_saved(tmp_path: Path) -> None:
    backbone, loss = blip(), loss_config(queue_size=4)
    names, parameters = list(backbone.state_dict()), len(list(backbone.parameters()))
    backbone.begin_training(train_config(loss))
    batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]), torch.tensor([0, 1]))
    backbone.train().training_step(batch, state_of(loss))["loss"].backward()
    assert list(backbone.state_dict()) == names
    assert len(list(backbone.parameters())) == parameters
    backbone.save_pretrained(tmp_path)
    assert {f"model.{name}" for name in load_file(tmp_path / FILE)} == set(names)
    average = backbone.average
    assert average is not None
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not [name for name, _ in average.model.named_parameters() if "crossattention" in name or "itm" in name]
    backbone.begin_training(train_config(LossConfig()))
    assert backbone.average is None


def test_momentum_wants_begin_training() -> None:
    backbone, loss = blip(), loss_config()
    batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]))
    with pytest.raises(RuntimeError, match="begin_training"):
        backbone.training_step(batch, state_of(loss))


@pytest.mark.parametrize("momentum", [None, MomentumConfig(queue_size=4), MomentumConfig(negatives="local")])
def test_a_batch_of_one_key_has_no_negatives_and_no_crash(momentum: MomentumConfig | None) -> None:
    backbone, loss = blip(), LossConfig(momentum=momentum)
    backbone.begin_training(train_config(loss))
    batch = Batch(pixels(3), backbone.tokenize(TEXTS[:3]), torch.tensor([7, 7, 7]))
    losses = backbone.training_step(batch, state_of(loss))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_dropout_of_the_average_follows_the_model() -> None:
    backbone, loss = blip(), loss_config(queue_size=4)
    backbone.freeze({"text": 0})
    backbone.begin_training(train_config(loss))
    batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]))
    for training in (True, False):
        backbone.train(training).training_step(batch, state_of(loss))
        assert backbone.average is not None
        model: Any = backbone.average.model
        assert model.vision_model.encoder.layers[0].training == training
        assert not model.text_encoder.encoder.layer[0].training


def test_bf16_keeps_the_losses_in_fp32() -> None:
    backbone, loss = blip(), loss_config(queue_size=8, ramp_epochs=0)
    batch = Batch(pixels(4), backbone.tokenize(TEXTS[:4]), torch.arange(4))
    results = []
    for enabled in (False, True):
        backbone.begin_training(train_config(loss))
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(backbone.training_step(batch, state_of(loss)))
    assert results[1]["loss"].dtype == torch.float32
    torch.testing.assert_close(results[1]["ita"], results[0]["ita"], atol=0.02, rtol=0.02)
    results[1]["loss"].backward()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone, loss = blip(), loss_config(queue_size=4)
        if checkpointing:
            backbone.set_grad_checkpointing()
            layers: Any = backbone.model
            assert layers.vision_model.encoder.layers[0].gradient_checkpointing
            assert layers.text_encoder.encoder.layer[0].gradient_checkpointing
        backbone.begin_training(train_config(loss))
        batch = Batch(pixels(2), backbone.tokenize(TEXTS[:2]), torch.tensor([0, 1]))
        backbone.train().training_step(batch, state_of(loss))["loss"].backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


def test_training_tells_right_pairs_from_wrong_ones() -> None:
    backbone, loss = blip(), loss_config(queue_size=10, momentum=0.9)
    size = len(TEXTS)
    batch = Batch(pixels(size), backbone.tokenize(TEXTS), torch.arange(size))
    backbone.begin_training(train_config(loss))
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=3e-3)
    torch.manual_seed(0)
    backbone.train()
    for step in range(120):
        optimiser.zero_grad()
        backbone.training_step(batch, state_of(loss, step, steps_per_epoch=2))["loss"].backward()
        optimiser.step()
        backbone.after_step()
    backbone.eval()
    with torch.no_grad():
        cosines = backbone.encode_image(batch.pixels) @ F.normalize(backbone.encode_text(batch.tokens), dim=-1).T
        states = backbone.image_states(batch.pixels)
        scores = torch.stack([backbone.match(states.roll(turn, 0), batch.tokens) for turn in range(size)])
    assert torch.equal(cosines.argmax(1), torch.arange(size))
    assert (scores.argmax(0) == 0).all()


# --- temperature


def test_the_temperature_starts_as_published_stays_in_range_and_is_saved(tmp_path: Path) -> None:
    backbone = blip()
    assert torch.exp(-backbone.logit_scale).item() == pytest.approx(0.07)
    for scale, temperature in ((-5.0, 0.5), (50.0, 0.001)):
        with torch.no_grad():
            backbone.logit_scale.fill_(scale)
        backbone.after_step()
        assert torch.exp(-backbone.logit_scale).item() == pytest.approx(temperature)
    backbone.save_pretrained(tmp_path)
    assert torch.exp(-Blip.from_pretrained(tmp_path).logit_scale).item() == pytest.approx(0.001)
    tensors = load_file(tmp_path / FILE)
    del tensors["logit_scale"]  # as the hub has it
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    assert torch.exp(-Blip.from_pretrained(tmp_path).logit_scale).item() == pytest.approx(0.07)


# --- what users get wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection": 5}, "BlipConfig knows no projection"),
        ({"vision_config": {"image_size": [32, 64]}}, "image_size must be one number"),
        ({"text_config": {"hidden_size": "8"}}, "hidden_size"),
    ],
)
def test_the_key_that_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    architecture = {**(SMALL["blip"].architecture or {}), **change}
    with pytest.raises(ArchitectureError, match=message):
        build(BackboneConfig(name="blip", architecture=architecture), texts=TEXTS)
