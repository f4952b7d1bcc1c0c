"""A whole recipe: every section of the parameters and every member, checked before anything runs."""

import difflib
import re
from typing import Any

from pydantic import ValidationError, field_validator, model_validator

from xmodal_kedro.config.data import (
    CompletionConfig,
    DataConfig,
    ImagesConfig,
    PromptsConfig,
    QueryForm,
    RelevanceConfig,
    SyntheticConfig,
)
from xmodal_kedro.config.ensemble import EnsembleConfig, EvaluationConfig, RuntimeConfig
from xmodal_kedro.config.frozen import Frozen
from xmodal_kedro.config.index import IndexConfig
from xmodal_kedro.config.member import MemberConfig

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class RecipeError(ValueError):
    """The parameters of the active environment are not a recipe; the message lists every key at fault."""


class Recipe(Frozen):
    """The parameters of one environment, with the members gathered under `members`."""

    data: DataConfig
    predict: DataConfig | None = None
    images: ImagesConfig
    prompts: PromptsConfig = PromptsConfig()
    completion: CompletionConfig | None = None
    relevance: RelevanceConfig = RelevanceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    index: IndexConfig = IndexConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    synthetic: SyntheticConfig | None = None
    members: dict[str, MemberConfig]

    @field_validator("predict")
    @classmethod
    def _new_data_has_no_truth(cls, predict: DataConfig | None) -> DataConfig | None:
        for number, source in enumerate(predict.sources if predict else []):
            if source.split != "test":
                raise ValueError(f"sources.{number}.split is '{source.split}': what is predicted is test")
        return predict

    @field_validator("members")
    @classmethod
    def _named_for_namespaces(cls, members: dict[str, MemberConfig]) -> dict[str, MemberConfig]:
        if not members:
            raise ValueError("member_names is empty: name at least one member")
        for name in members:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no member name: lower-case letters, digits and _, a letter first")
            if name in (*SECTIONS, "fused", "chance"):
                raise ValueError(f"'{name}' is a section or a row of the leaderboard, so no member can have that name")
        return members

    @model_validator(mode="after")
    def _names_its_own_members(self) -> "Recipe":
        asked = {"completion.member": self.completion, "ensemble.rerank.member": self.ensemble.rerank}
        for key, section in asked.items():
            if section is not None and section.member not in self.members:
                raise ValueError(f"{key} is '{section.member}', which is no member: {', '.join(self.members)}")
        fusion = self.ensemble.fusion
        weighed = list(fusion.weights) if isinstance(fusion.weights, dict) else []
        for key, names in {"weights": weighed, "normalisations": list(fusion.normalisations)}.items():
            if unknown := sorted(set(names) - set(self.members)):
                raise ValueError(
                    f"ensemble.fusion.{key} names '{unknown[0]}', which is no member: {', '.join(self.members)}"
                )
        for name, member in self.members.items():
            for group, prompts in (member.prompts or {}).items():
                if prompts.query != QueryForm():
                    raise ValueError(
                        f"{name}.prompts.{group}.query: queries are the same for all members; set it in "
                        f"prompts.groups.{group}"
                    )
            PromptsConfig(vehicle_group=self.prompts.vehicle_group, groups=member.prompts or {})
        return self


SECTIONS = tuple(name for name in Recipe.model_fields if name != "members")


def read_recipe(parameters: dict[str, Any]) -> Recipe:
    """Check the parameters of an environment and return them as one frozen object.

    Args:
        parameters: As the config loader gives them: sections, `member_names`, and one mapping per member.

    Raises:
        RecipeError: Listing each unknown key, missing key and wrong type, with the nearest key that exists.
    """
    names = parameters.get("member_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"member_names must be a list of names, not {names!r}")
    if len(set(names)) != len(names):
        raise RecipeError(f"member_names lists a member twice: {names}")
    problems = []
    known = (*SECTIONS, "member_names", *names)
    for key in parameters:
        if key not in known:
            problems.append(f"{key}: unknown key{_nearest(key, known)}; a new member must be listed in member_names")
    for name in names:
        if name not in parameters:
            problems.append(f"{name}: is listed in member_names, but has no section of its own")
    try:
        recipe = Recipe.model_validate(
            {key: parameters[key] for key in SECTIONS if key in parameters}
            | {"members": {name: parameters[name] for name in names if name in parameters}}
        )
    except ValidationError as error:
        problems += [_explain(problem) for problem in error.errors()]
    if problems:
        raise RecipeError("the parameters are not a valid recipe:\n" + "\n".join(f"- {line}" for line in problems))
    return recipe


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if location[:1] == ["members"]:
        location = location[1:] or ["member_names"]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(location[-1], _siblings(problem['loc']))}"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    value = problem.get("input")
    shown = "" if isinstance(value, dict) else f" (it is {value!r})"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def _siblings(location: tuple[Any, ...]) -> tuple[str, ...]:
    """Names that the config section around an unknown key does have."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        for choice in node.get("anyOf", []):
            node = choice if "$ref" in choice else node
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return tuple(node.get("properties", {}))


def _nearest(key: str, known: tuple[str, ...]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f", did you mean '{matches[0]}'?" if matches else ""
