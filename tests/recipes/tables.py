"""The tables of docs/recipes/*.md as data, and the configs that they speak of, as the config loader gives them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.conftest import REPOSITORY
from xmodal_kedro.config.recipe import read_recipe
from xmodal_kedro.config_loader import BASE, CONFIG_LOADER_ARGS, LOCAL, RecipeConfigLoader, layers_of

PAGES = REPOSITORY / "docs/recipes"
PUBLISHED = ["parameter", "published", "ours", "why it differs"]
OVERRIDES = ["parameter", "recipe", "twin"]
MISSING = object()

# What a twin may override, and nothing else: sizes, where weights and data lie, words of the data, precision and the
# schedule.
ALLOWED_IN_TWINS = re.compile(
    r"data\.root|predict\.root|prompts\.vocabulary\.(brands|types)|images\.size"
    r"|\w+\.backbone\.(weights|architecture|context|lora|unlocked_groups)(\.\w+)*"
    r"|\w+\.train\.(lr|warmup_steps|epochs|schedule|schedule_epochs|batch_size|micro_batch|loss\.momentum\.queue_size)"
    r"|\w+\.train\.(captions_per_image|precision)|\w+\.embed\.batch_size"
)


class Published(NamedTuple):
    """A row of the table of parameters: the source's value beside ours."""

    parameter: str
    published: str
    ours: str
    why: str


class Override(NamedTuple):
    """A row of the table of what a twin overrides."""

    parameter: str
    recipe: str
    twin: str


def recipes() -> list[str]:
    """Every recipe that has a page."""
    return sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "README")


def loaded(env: str) -> dict[str, Any]:
    """The un-overridden parameters of an environment: every key with its value or default, models by their names.

    The user's own layer, conf/local, is left out.
    """
    recipe = read_recipe(_parameters(env)).model_dump()
    models = recipe.pop("members") | recipe.pop("captioners")
    return recipe | models


def models_of(env: str) -> list[str]:
    """Names of the members and captioners of an environment."""
    parameters = _parameters(env)
    return [*parameters["member_names"], *parameters.get("captioner_names", [])]


def set_by(env: str) -> list[str]:
    """Key paths that an environment sets itself, or by one that it extends: all but what is left to base."""
    found: dict[str, None] = {}
    for layer in layers_of(REPOSITORY / "conf", env):
        if layer not in (BASE, LOCAL):
            content = yaml.safe_load((REPOSITORY / "conf" / layer / "parameters.yml").read_text())
            found |= dict.fromkeys(_leaves(content))
    return list(found)


def value_at(config: Any, path: str) -> Any:
    """What lies at a key path such as `blip.train.lr`, or MISSING."""
    for key in path.split("."):
        if not isinstance(config, dict) or key not in config:
            return MISSING
        config = config[key]
    return config


def difference(recipe: dict[str, Any], twin: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key paths at which two configs differ, each with both values; mappings are compared key by key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**recipe, **twin}:
        ours, other = recipe.get(key, MISSING), twin.get(key, MISSING)
        if isinstance(ours, dict) and isinstance(other, dict):
            found |= {f"{key}.{path}": values for path, values in difference(ours, other).items()}
        elif ours != other:
            found[key] = (ours, other)
    return found


def published(page: Path) -> list[Published]:
    """The rows of the tables of parameters; `*.train.lr` stands for that key of every model, `a_*` for some."""
    models = models_of(page.stem)
    found = []
    for row in (Published(*cells) for cells in _rows(page.read_text(encoding="utf-8"), PUBLISHED)):
        found += [row._replace(parameter=parameter) for parameter in _spelt_out(row.parameter, models)]
    return found


def overrides(page: Path) -> list[Override]:
    """The rows of the table of what the twin overrides, with wildcards as in `published`."""
    models = models_of(page.stem)
    rows = [Override(*cells) for cells in _rows(page.read_text(encoding="utf-8"), OVERRIDES)]
    return [row._replace(parameter=parameter) for row in rows for parameter in _spelt_out(row.parameter, models)]


def parsed(cell: str) -> Any:
    """The value that a cell writes in YAML, or its words; numbers such as 1e-5, text for YAML, are numbers here."""
    try:
        value = yaml.safe_load(cell)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return cell


def _rows(text: str, header: list[str]) -> list[list[str]]:
    """Cells of every table with this header, below it; backticks around a cell are taken off."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [_cell(cell) for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if cells == header:
            inside = True
        elif inside and line.startswith("|"):
            if set("".join(cells)) <= set("-: "):
                continue
            assert len(cells) == len(header), f"{len(cells)} cells instead of {len(header)}: {line}"
            found.append(cells)
        else:
            inside = False
    return found


def _spelt_out(parameter: str, models: list[str]) -> list[str]:
    name, _, key = parameter.partition(".")
    return [f"{model}.{key}" for model in models if fnmatchcase(model, name)] if "*" in name else [parameter]


def _cell(cell: str) -> str:
    cell = cell.strip().replace(r"\|", "|")
    return cell[1:-1] if len(cell) > 1 and cell.startswith("`") and cell.find("`", 1) == len(cell) - 1 else cell


def _leaves(config: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in config.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _parameters(env: str) -> dict[str, Any]:
    previous = RecipeConfigLoader.active
    try:
        loader = RecipeConfigLoader(REPOSITORY / "conf", env, **CONFIG_LOADER_ARGS)
        loader.layers = [layer for layer in loader.layers if layer != LOCAL]
        return loader["parameters"]
    finally:
        RecipeConfigLoader.active = previous
