from __future__ import annotations

import torch
from torch import nn

from tests.models.small import SMALL, TEXTS, small_backbone
from xmodal_kedro.config.member import LossConfig, MomentumConfig, TrainConfig
from xmodal_kedro.models import build
from xmodal_kedro.models.captioner import Captioner
from xmodal_kedro.training.footprint import _counted, captioner_footprint, footprint, meta_device

CONFIG = TrainConfig(epochs=1, batch_size=2, lr=1.0)


def test_a_linear_layer_is_counted_by_hand() -> None:
    with meta_device():
        layers = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
        rows = torch.empty(3, 10)
    saved, forward, training = _counted(lambda: layers(rows).sum(), list(layers.parameters()))
    # For backward: the input, and the output of ReLU, which both it and the second layer need. Weights are parameters.
    assert saved == 4 * (3 * 10 + 3 * 20)
    assert forward == 2 * 3 * (10 * 20 + 20 * 5)
    # Every product has two more in backward, but for the gradient of the input, which nobody wants.
    assert training == forward + 2 * 3 * (10 * 20 + 2 * 20 * 5)


def test_frozen_layers_have_no_gradients_and_keep_no_activations() -> None:
    with meta_device():
        backbone = build(SMALL["open_clip"], 0, TEXTS)
    whole = footprint(backbone, CONFIG, tokens=10)
    assert whole.parameters == whole.trainable == sum(p.numel() for p in small_backbone().parameters())
    assert (whole.weights, whole.gradients, whole.moments) == tuple(n * whole.parameters for n in (4, 4, 8))
    backbone.freeze({"image": 0})
    locked = footprint(backbone, CONFIG, tokens=10)
    image = sum(parameter.numel() for group in backbone.layer_groups("image") for parameter in group)
    assert locked.trainable == whole.trainable - image
    assert (locked.gradients, locked.moments, locked.weights) == (
        4 * locked.trainable,
        8 * locked.trainable,
        whole.weights,
    )
    assert locked.activations_per_pair < whole.activations_per_pair / 2
    assert locked.flops_per_pair == whole.flops_per_pair
    assert locked.training_flops_per_pair < whole.training_flops_per_pair


def test_the_total_grows_with_the_pairs_that_are_computed_at_once() -> None:
    with meta_device():
        found = footprint(build(SMALL["chinese_clip"], 0, TEXTS), CONFIG, tokens=10)
    assert found.total(7) - found.total(2) == 5 * found.activations_per_pair
    assert found.total(0) == 16 * found.parameters


def test_half_precision_halves_activations_and_momentum_copies_weights() -> None:
    with meta_device():
        backbone = build(SMALL["open_clip"], 0, TEXTS)
    plain = footprint(backbone, CONFIG, tokens=10)
    half = footprint(backbone, CONFIG.model_copy(update={"precision": "bf16"}), tokens=10)
    assert half.activations_per_pair == plain.activations_per_pair // 2
    queued = CONFIG.model_copy(update={"loss": LossConfig(momentum=MomentumConfig(queue_size=100))})
    copied = footprint(backbone, queued, tokens=10)
    assert copied.weights == 2 * plain.weights
    assert copied.queues == 100 * (2 * 4 * 16 + 8)  # features of both sides in fp32, and a key


def test_captions_count_by_their_length() -> None:
    with meta_device():
        backbone = build(SMALL["open_clip"], 0, TEXTS)
    short, long = (footprint(backbone, CONFIG, tokens=tokens) for tokens in (5, 20))
    assert long.activations_per_pair > short.activations_per_pair
    assert long.flops_per_pair > short.flops_per_pair


def test_a_captioner_keeps_the_logits_of_every_token_and_nothing_of_a_frozen_image_encoder() -> None:
    with meta_device():
        captioner = build(SMALL["res2net_gpt"], 0, TEXTS).captioner()
    assert isinstance(captioner, Captioner)
    captioner.requires_grad_(True)
    short, long = (captioner_footprint(captioner, 64, CONFIG, tokens) for tokens in (5, 10))
    assert short.trainable == short.parameters == sum(parameter.numel() for parameter in captioner.parameters())
    per_token = (long.activations_per_pair - short.activations_per_pair) / 5
    assert per_token >= 4 * len(captioner.vocabulary)
    captioner.image_encoder.requires_grad_(False)
    frozen = captioner_footprint(captioner, 64, CONFIG, 5)
    assert frozen.trainable == short.trainable - sum(p.numel() for p in captioner.image_encoder.parameters())
    assert frozen.activations_per_pair < short.activations_per_pair
    assert frozen.flops_per_pair == short.flops_per_pair
