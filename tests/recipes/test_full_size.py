"""The published models at their real size, on the meta device: what they count, what trains, what the docs say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.full_size import (
    RECIPES,
    ROOT,
    FullSize,
    estimate,
    estimate_captioner,
    full_size,
    measure,
    memory_table,
)
from tests.models.small import SMALL, small_member
from xmodal_kedro.training.footprint import Footprint

# Parameters in millions as the libraries and papers publish them.
PUBLISHED = {
    "iflytek.chinese_clip": 958,  # Chinese-CLIP, arXiv 2211.01335, table 1
    "traffic_a3r.bigg": 2539.57,  # open_clip's model profile, as the next three
    "traffic_first.clip_h_full": 986.11,
    "traffic_first.clip_h_locked": 986.11,
    "traffic_first.clip_xlmr": 1193.01,
}


@pytest.fixture(scope="module")
def members() -> Iterator[dict[str, FullSize]]:
    with full_size() as found:
        yield {f"{one.recipe}.{one.member.name}": one for one in found}


@pytest.fixture(scope="module")
def estimates(members: dict[str, FullSize]) -> dict[str, Footprint]:
    return {name: estimate(one) for name, one in members.items()}


def block(width: int) -> int:
    """Of a transformer: q, k, v, output, an MLP of four times the width, two norms, and all biases."""
    return 12 * width**2 + 13 * width


def lora(modules: int, width: int, rank: int = 64) -> int:
    return modules * 2 * rank * width


def clip_text(width: int, layers: int, embed_dim: int) -> int:
    return layers * block(width) + 49408 * width + 77 * width + 2 * width + width * embed_dim


def last_five_groups(width: int, embed_dim: int) -> int:
    """Projection, last block with the norm after it, and the three blocks before."""
    return width * embed_dim + 4 * block(width) + 2 * width


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_their_published_size(estimates: dict[str, Footprint], name: str) -> None:
    adapters = lora(72, 1024) + lora(96, 1280) if name.startswith("iflytek") else 0
    assert (estimates[name].parameters - adapters) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.5)


def test_what_trains_is_what_the_recipes_say(estimates: dict[str, Footprint]) -> None:
    trained = {name: found.trainable for name, found in estimates.items()}
    # Query, key and value of 24 text layers of 1024 and of 32 image layers of 1280: both towers.
    assert trained["iflytek.chinese_clip"] == lora(3 * 24, 1024) + lora(3 * 32, 1280)
    assert trained["traffic_first.clip_h_locked"] == last_five_groups(1280, 1024) + clip_text(1024, 24, 1024) + 1
    for name in ("traffic_a3r.bigg", "traffic_first.clip_h_full", "traffic_first.blip_large"):
        assert trained[name] == estimates[name].parameters
    # XLM-RoBERTa large with its projection of two layers, pooled by mean.
    xlm_roberta = 250002 * 1024 + 514 * 1024 + 1024 + 2 * 1024 + 24 * block(1024)
    projection = 1024 * 1024 + 1024 * 1024
    assert trained["traffic_first.clip_xlmr"] == pytest.approx(
        last_five_groups(1280, 1024) + xlm_roberta + projection, rel=2e-3
    )
    # ResNet50 without its classifier (23 508 032), 2048 -> 768, and RoBERTa base with its pooler (124 645 632).
    temperature = 1
    resnet_roberta = 23_508_032 + 2048 * 768 + 768 + 124_645_632
    assert trained["contrastive.resnet_roberta"] == resnet_roberta
    assert estimates["contrastive.resnet_roberta"].parameters == resnet_roberta + temperature


def test_what_is_a_gpt_is_shared_by_the_clip_and_its_captioners(
    members: dict[str, FullSize], estimates: dict[str, Footprint]
) -> None:
    one, clip = members["clipcap_zh.clip"], estimates["clipcap_zh.clip"]
    width, characters = 768, 6000
    layer = width**2 + width
    blocks = 12 * (block(width) - 3 * width)  # queries, keys and values have no bias
    head = 2 * width + characters * (width + 1)  # with the norm before it
    gpt = (characters + 100) * width + blocks + head
    text_projection = 2 * layer + 2 * width
    image_projection = 2048 * width + width + layer + 2 * width
    res2next50 = clip.parameters - gpt - text_projection - image_projection - 1
    assert (res2next50 + 2048 * 1000 + 1000) / 1e6 == pytest.approx(
        24.67, abs=0.01
    )  # with its classifier, as timm says
    assert clip.trainable == clip.parameters - head
    captioner = estimate_captioner(one, one.captioners[0])
    assert captioner.trainable == captioner.parameters == clip.parameters - text_projection - 1
    assert [writer.name for writer in one.captioners] == ["model_0923", "model_0920", "model_0913"]


def test_text_alone_is_what_the_misspelt_target_trained(members: dict[str, FullSize]) -> None:
    one = members["iflytek.chinese_clip"]
    assert one.member.backbone.lora is not None
    text = one.member.backbone.model_copy(
        update={"lora": one.member.backbone.lora.model_copy(update={"towers": "text"})}
    )
    published = FullSize(one.recipe, one.member.model_copy(update={"backbone": text}), one.processes)
    assert estimate(published).trainable == lora(72, 1024)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_pages_quote_these_figures(
    members: dict[str, FullSize], estimates: dict[str, Footprint], recipe: str
) -> None:
    page = (ROOT / "docs" / "recipes" / f"{recipe}.md").read_text()
    table = memory_table([(one, estimates[name]) for name, one in members.items() if one.recipe == recipe])
    assert f"<!-- memory -->\n{table}<!-- /memory -->" in page, "run: uv run python -m benchmarks.full_size"


@pytest.mark.parametrize("name", ["open_clip", "blip"])
def test_a_member_is_measured_on_any_device(name: str) -> None:
    """What runs on a GPU at full size, run here on a small model."""
    one = FullSize("small", small_member(name, precision="bf16"), 1)
    assert one.member.backbone == SMALL[name]
    case = measure(one, estimate(one), torch.device("cpu"), pairs=3)
    assert case["train"]["pairs_per_second"] > 0
    assert case["encode"]["images_per_second"] > 0
    assert 0 < case["limit"]["share"] < 1
