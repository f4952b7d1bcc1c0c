"""What a recipe says about captions: faults are named, and the examples of the page are recipes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from tests.config.test_recipe import PARAMETERS
from tests.conftest import REPOSITORY
from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig, CaptionTrainConfig, SelfCriticalConfig
from xmodal_kedro.config.recipe import Recipe, RecipeError, read_recipe

PAGE = (REPOSITORY / "docs/captioning.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
WRITER = {"member": "small", "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3}}


def recipe(captioners: dict[str, Any], captioning: dict[str, Any] | None = None, **more: Any) -> Recipe:
    parameters = copy.deepcopy(PARAMETERS) | {"captioner_names": list(captioners), **captioners, **more}
    return read_recipe(parameters | ({"captioning": captioning} if captioning else {}))


def test_captioners_are_gathered_beside_the_members() -> None:
    found = recipe({"writer": WRITER, "other": WRITER})
    assert list(found.captioners) == ["writer", "other"]
    assert found.captioners["writer"].train.metric == "cider_d"
    assert found.captioning.named("cider_d") == "cider_d_characters"


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_are_recipes(example: dict[str, Any]) -> None:
    base = {key: value for key, value in PARAMETERS.items() if key not in example}
    if "member_names" in example:
        base.pop("small")
    assert list(read_recipe({**base, **example}).captioners) == example["captioner_names"]


def test_every_key_is_on_the_page() -> None:
    keys = (
        {"member", "weights", "mean", "std"} | set(CaptioningConfig.model_fields) | set(SelfCriticalConfig.model_fields)
    )
    own = set(CaptionTrainConfig.model_fields) - set(CaptionTrainConfig.__bases__[0].model_fields)
    table = PAGE[PAGE.index("## Keys") : PAGE.index("## In Python")]
    assert [key for key in sorted(keys | own) if not re.search(rf"\b{key}\b", table)] == []
    assert {"name", "member", "weights", "mean", "std", "train"} == set(CaptionerConfig.model_fields)


@pytest.mark.parametrize(
    ("captioners", "captioning", "message"),
    [
        ({"writer": {**WRITER, "weights": "models/blip"}}, {}, r"writer: .*set one of the two"),
        ({"writer": {"member": "small"}}, {}, r"writer: .*needs train"),
        ({"writer": {"weights": "models/blip", "mean": [0, 0, 0]}}, {}, r"writer: .*come with the weights"),
        ({"writer": {**WRITER, "member": "smal"}}, {}, r"writer\.member is 'smal', which is no member: small"),
        (
            {"ensemble": WRITER},
            {},
            r"recipe:\n- captioner_names: 'ensemble' is a section.*, so no captioner can have that name$",
        ),
        ({"constant": WRITER}, {}, r"no captioner can have that name"),
        ({"captions": WRITER}, {}, r"'captions' is a .*folder of results.*, so no captioner can have that name"),
        ({"writer": {**WRITER, "mean": [0, 0, 0], "std": [1, 0, 1]}}, {}, r"writer\.std\.1: .*greater than 0"),
        ({"writer": WRITER}, {"metrics": ["cider_d_words"]}, r"leave out _words .*captioning\.tokeniser says how"),
        ({"writer": WRITER}, {"metrics": ["cider_d", "spice"]}, r"metrics: there is no caption metric 'spice'"),
        ({"writer": WRITER}, {"metrics": ["cider_d", "ref_clipscore"]}, r"set captioning\.clip_score to a member"),
        ({"writer": WRITER}, {"metrics": ["bleu_4"]}, r"cider_d is what captions are compared by: add it"),
        ({"writer": WRITER}, {"clip_score": "other"}, r"captioning\.clip_score is 'other', which is no member"),
        (
            {"writer": WRITER},
            {"ensemble": {"weights": {"writr": 1.0}}},
            r"\n- captioning\.ensemble.* are writer.*to equal",
        ),
        (
            {"writer": WRITER},
            {"ensemble": {"weights": {"writer": -1.0}}},
            r"recipe:\n- captioning\.ensemble\.weights\.writer: [^\n]*\(it is -1\.0\)$",
        ),
        (
            {"writer": {**WRITER, "train": {**WRITER["train"], "captions_per_image": 200, "batch_size": 160}}},
            {},
            r"writer\.train: captions_per_image 200 is more than batch_size 160: lower the one",
        ),
        ({"writer": WRITER}, {"metrics": ["cider_d", "clip_score"]}, r"set captioning\.clip_score to a member"),
        ({"writer": None}, {}, r"writer: is empty; it needs member and train, or weights$"),
        ({"writer": WRITER}, {"decoding": {"method": "beams"}}, r"captioning\.decoding\.method"),
        ({"writer": WRITER}, {"tokenizer": "words"}, r"tokenizer: unknown key, did you mean 'tokeniser'\?"),
        (
            {"writer": {**WRITER, "train": {**WRITER["train"], "self_critical": {"samples": 1}}}},
            {},
            r"writer\.train\.self_critical: .*at least 2",
        ),
    ],
)
def test_faults_are_named(captioners: dict[str, Any], captioning: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(captioners, captioning)


@pytest.mark.parametrize("section", [WRITER, PARAMETERS["small"]])
def test_a_name_that_is_there_twice_is_reported_once(section: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"recipe:\n- small: is listed in member_names and in captioner_names$"):
        recipe({"small": section, "writer": WRITER})
    with pytest.raises(RecipeError, match=r"recipe:\n- ghost: is listed in member_names and in captioner_names$"):
        read_recipe({**PARAMETERS, "member_names": ["small", "ghost"], "captioner_names": ["ghost"]})


def test_a_captioner_without_a_section_and_a_section_without_a_captioner_are_named() -> None:
    with pytest.raises(RecipeError, match=r"ghost: is listed in captioner_names, but has no section"):
        read_recipe({**PARAMETERS, "captioner_names": ["ghost"]})
    with pytest.raises(RecipeError, match=r"writer: unknown key.*captioner_names"):
        read_recipe({**PARAMETERS, "writer": WRITER})
    with pytest.raises(RecipeError, match="captioner_names lists a captioner twice"):
        recipe({"writer": WRITER}, captioner_names=["writer", "writer"])
