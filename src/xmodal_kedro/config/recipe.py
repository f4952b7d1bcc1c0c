"""A whole recipe: every section of the parameters and every member, checked before anything runs."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from xmodal_kedro.config.captioning import CaptionerConfig, CaptioningConfig
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
_TAKEN = ("captions", "submission", "predict", "null", "nan")  # folders of results, and what tables read as no name
_CHOICE = re.compile(r"(str|int|float|bool|dict|list|literal|constrained-\w+)(\[.*\])?")  # of a union, as pydantic says
_CAPTIONER_NEEDS = "member and train, or weights"  # either will do, so none of them is required by itself


class RecipeError(ValueError):
    """The parameters of the active environment are not a recipe; the message lists every key at fault."""


class Recipe(Frozen):
    """The parameters of one environment, with members and captioners gathered under these names."""

    data: DataConfig
    predict: DataConfig | None = None
    images: ImagesConfig
    prompts: PromptsConfig = PromptsConfig()
    completion: CompletionConfig | None = None
    relevance: RelevanceConfig = RelevanceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    captioning: CaptioningConfig = CaptioningConfig()
    index: IndexConfig = IndexConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    synthetic: SyntheticConfig | None = None
    members: dict[str, MemberConfig]
    captioners: dict[str, CaptionerConfig] = {}

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
            _check_name(name, "member", ("fused", "chance"))
        return members

    @field_validator("captioners")
    @classmethod
    def _captioners_named_for_namespaces(cls, captioners: dict[str, CaptionerConfig]) -> dict[str, CaptionerConfig]:
        for name in captioners:
            _check_name(name, "captioner", ("constant", "nearest"))
        return captioners

    @model_validator(mode="after")
    def _names_its_own_members(self) -> "Recipe":
        asked = {"completion.member": self.completion, "ensemble.rerank.member": self.ensemble.rerank}
        named = {key: section.member for key, section in asked.items() if section is not None}
        named |= {f"{name}.member": one.member for name, one in self.captioners.items() if one.member is not None}
        if self.captioning.clip_score is not None:
            named["captioning.clip_score"] = self.captioning.clip_score
        for key, asked_for in named.items():
            if asked_for not in self.members:
                raise ValueError(f"{key} is '{asked_for}', which is no member: {', '.join(self.members)}")
        fusion = self.ensemble.fusion
        weighed = list(fusion.weights) if isinstance(fusion.weights, dict) else []
        for key, names in {"weights": weighed, "normalisations": list(fusion.normalisations)}.items():
            if unknown := sorted(set(names) - set(self.members)):
                raise ValueError(
                    f"ensemble.fusion.{key} names '{unknown[0]}', which is no member: {', '.join(self.members)}"
                )
        mixed = self.captioning.ensemble.weights
        if isinstance(mixed, dict) and set(mixed) != set(self.captioners):
            raise ValueError(
                f"captioning.ensemble.weights are those of {', '.join(mixed)}; the captioners are "
                f"{', '.join(self.captioners) or 'none'}: give each one its weight, or set captioning.ensemble.weights "
                "to equal"
            )
        self._check_mixed_captioners(mixed)
        for name, member in self.members.items():
            for group, prompts in (member.prompts or {}).items():
                if prompts.query != QueryForm():
                    raise ValueError(
                        f"{name}.prompts.{group}.query: queries are the same for all members; set it in "
                        f"prompts.groups.{group}"
                    )
            PromptsConfig(vehicle_group=self.prompts.vehicle_group, groups=member.prompts or {})
        return self

    def _check_mixed_captioners(self, weights: dict[str, float] | Literal["equal"]) -> None:
        shares = dict.fromkeys(self.captioners, 1.0) if weights == "equal" else weights
        speaking = [name for name, share in shares.items() if share]
        kinds = {self.captioners[name].member is None: name for name in reversed(speaking)}
        if len(kinds) > 1:
            raise ValueError(
                f"captioning.ensemble: '{kinds[False]}' is trained from a member and '{kinds[True]}' has weights of "
                "transformers, and their vocabularies are never the same. Set captioning.ensemble.weights to 0 for one "
                "of the two kinds, or leave it out of captioner_names"
            )


NAMED = {"members": "member_names", "captioners": "captioner_names"}
SECTIONS = tuple(name for name in Recipe.model_fields if name not in NAMED)


def read_recipe(parameters: dict[str, Any]) -> Recipe:
    """Check the parameters of an environment and return them as one frozen object.

    Args:
        parameters: As the config loader gives them: sections, `member_names` and `captioner_names`, and one mapping per
            member and captioner.

    Raises:
        RecipeError: Listing each unknown key, missing key and wrong type, with the nearest key that exists.
    """
    names = {gathered: _names(parameters, key) for gathered, key in NAMED.items()}
    every = [name for listed in names.values() for name in listed]
    twice = [name for name in names["members"] if name in names["captioners"]]
    problems = [f"{name}: is listed in member_names and in captioner_names" for name in twice]
    sections = [(gathered, name) for gathered, listed in names.items() for name in listed if name in SECTIONS]
    problems += [f"{NAMED[gathered]}: {_taken(name, gathered.removesuffix('s'))}" for gathered, name in sections]
    misread = {*twice, *(name for _, name in sections)}
    known = (*SECTIONS, *NAMED.values(), *every)
    for key in parameters:
        if key not in known:
            problems.append(
                f"{key}: unknown key{_nearest(key, known)}; a new member must be listed in member_names, a new "
                "captioner in captioner_names"
            )
    for gathered, listed in names.items():
        for name in listed:
            if name not in parameters and name not in twice:
                problems.append(f"{name}: is listed in {NAMED[gathered]}, but has no section of its own")
    try:
        recipe = Recipe.model_validate(
            {key: parameters[key] for key in SECTIONS if key in parameters}
            | {gathered: {n: parameters[n] for n in listed if n in parameters} for gathered, listed in names.items()}
        )
    except ValidationError as error:
        # What is read as a member and as a captioner, or is another section, is wrong as one of both.
        found = [problem for problem in error.errors() if misread.isdisjoint(map(str, problem["loc"][:2]))]
        problems += _explained(found)
    if problems:
        raise RecipeError("the parameters are not a valid recipe:\n" + "\n".join(f"- {line}" for line in problems))
    return recipe


def _names(parameters: dict[str, Any], key: str) -> list[str]:
    """The members or captioners that a recipe lists; it may have no captioners."""
    names = parameters.get(key, [] if key == "captioner_names" else None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{key} must be a list of names, not {names!r}")
    if len(set(names)) != len(names):
        raise RecipeError(f"{key} lists a {key.removesuffix('_names')} twice: {names}")
    return names


def _check_name(name: str, what: str, taken: tuple[str, ...]) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is no {what} name: lower-case letters, digits and _, a letter first")
    if name in (*_TAKEN, *taken):
        raise ValueError(_taken(name, what))


def _taken(name: str, what: str) -> str:
    return f"'{name}' is a section, a folder of results or a row of the leaderboard, so no {what} can have that name"


def _explained(problems: Sequence[Any]) -> list[str]:
    """One line per key: what each choice of a union wants is joined, unless the value is of one choice's kind."""
    found: dict[str, str] = {}
    for problem in problems:
        key, wanted, value = _explain(problem)
        if key in found:
            wanted = f"{found[key].removesuffix(value)}, or {wanted.removeprefix('Input should be ')}"
        found[key] = wanted + value
    deepest = [key for key in found if not any(other.startswith(f"{key}.") for other in found)]
    return [f"{key}: {found[key]}" if key else found[key] for key in deepest]


def _explain(problem: Any) -> tuple[str, str, str]:
    """The key as a recipe writes it (empty where sections do not go together), what is wrong, and the value."""
    location = [str(part) for part in problem["loc"] if not _CHOICE.fullmatch(str(part))]
    if location and location[0] in NAMED:
        location = location[1:] or [NAMED[location[0]]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return key, f"unknown key{_nearest(location[-1], _siblings(problem['loc']))}", ""
    if problem["type"] == "missing":
        return key, "is missing", ""
    value = problem.get("input")
    if problem["type"] == "model_type" and value is None:
        kind = problem["ctx"]["class_name"]
        required = Recipe.model_json_schema()["$defs"][kind].get("required", [])
        needs = _CAPTIONER_NEEDS if kind == CaptionerConfig.__name__ else ", ".join(required)
        return key, f"is empty; it needs {needs}" if needs else "is empty; leave it out, or set some of its keys", ""
    return key, problem["msg"].removeprefix("Value error, "), "" if isinstance(value, dict) else f" (it is {value!r})"


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
