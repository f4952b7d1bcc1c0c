"""Reads a recipe through its layers: base -> recipe -> twin -> local, each saying only what differs.

An environment may stand on another one: `conf/<environment>/recipe.yml` with `extends: <other>`. `conf/local`, the
user's own settings, comes last under every environment. Parameters are merged key by key; lists are replaced whole.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf

BASE, LOCAL = "base", "local"
NAME_LISTS = ("member_names", "captioner_names")
BY_NAME = (
    ("ensemble", "fusion", "weights"),
    ("ensemble", "fusion", "normalisations"),
    ("captioning", "ensemble", "weights"),
)

CONFIG_LOADER_ARGS = {
    "base_env": BASE,
    "default_run_env": LOCAL,
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}


class RecipeConfigLoader(OmegaConfigLoader):
    """Kedro's config loader over a chain of environments; the last one made is the active recipe."""

    active: "RecipeConfigLoader | None" = None

    def __init__(self, conf_source: str | Path, env: str | None = None, **settings: Any) -> None:
        """Find the chain of `env`, and make this recipe the one that the registry reads its members from."""
        self.layers = layers_of(Path(conf_source), env)
        super().__init__(conf_source, env, **settings)
        previous, RecipeConfigLoader.active = RecipeConfigLoader.active, self
        if previous is not None:
            # A second session in this process: pipelines that are built already may have other members.
            pipelines.configure(pipelines._pipelines_module)

    @property
    def data_folder(self) -> str:
        """Where this environment writes: what one recipe wrote must not be taken for another's."""
        recipe = [layer for layer in self.layers if layer not in (BASE, LOCAL)]
        return f"data/{recipe[-1]}" if recipe else "data"

    @property
    def _lists_at_run_time(self) -> bool:
        """Whether `--params` lists members or captioners: Kedro then gives each layer this list for its own."""
        return any(key in (self.runtime_params or {}) for key in NAME_LISTS)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration from every layer and merge them in order."""
        if key in self.data or key not in self.config_patterns:
            return super().__getitem__(key)
        if key == "globals":
            OmegaConf.clear_resolver("runtime_params")
        else:
            self._register_runtime_params_resolver()
        read: set[Path] = set()
        merged: dict[str, Any] = {}
        known_members: set[str] = set()
        for layer in self.layers:
            path = (Path(self.conf_source) / layer).as_posix()
            config = self.load_and_merge_dir_config(path, self.config_patterns[key], key, read, key == "credentials")
            known_members.update(_named(config))
            if key == "parameters" and (config if layer == LOCAL else self._lists_at_run_time):
                known_members.update(_members_of_all(Path(self.conf_source)))
            # Kedro's "soft" strategy: mappings are united, everything else is replaced.
            soft = self.merge_strategy.get(key) == "soft"
            merged = OmegaConf.to_container(OmegaConf.merge(merged, config)) if soft else merged | config  # type: ignore[assignment]
        if not read and key != "globals":
            raise MissingConfigException(f"none of {self.layers} in {self.conf_source} has a file for '{key}'")
        if key == "catalog":
            for entry in merged.values():
                if isinstance(entry, dict) and str(entry.get("filepath", "")).startswith("data/"):
                    entry["filepath"] = f"{self.data_folder}/" + entry["filepath"].removeprefix("data/")
        if key == "parameters":
            # Members and captioners of a lower layer that this recipe does not use are no typing errors; they are just
            # not there. The user's own layer lies under every recipe, so it may speak of the members of any.
            unused = known_members - set(_named(merged))
            for path in BY_NAME:
                if (mapping := _at(merged, path)) and mapping.keys() <= unused:
                    del _at(merged, path[:-1])[path[-1]]  # it spoke of these alone: as if it were not set
            for mapping in (merged, *(_at(merged, path) for path in BY_NAME)):
                for name in unused & mapping.keys():
                    del mapping[name]
            for name in _named(merged):
                if isinstance(merged.get(name), dict):
                    merged[name]["name"] = name
        return merged


def layers_of(conf: Path, env: str | None) -> list[str]:
    """Environments that make up `env`, lowest first.

    Raises:
        MissingConfigException: `env`, or one that it extends, is no folder of `conf`; the message lists those there.
        ValueError: Environments extend each other in a circle.
    """
    chain: list[str] = []
    name = env if env and env not in (BASE, LOCAL) else None
    while name is not None:
        if name in chain:
            raise ValueError(f"conf/{chain[-1]}/recipe.yml extends '{name}', which stands on it already: {chain}")
        if not (conf / name).is_dir():
            there = sorted(p.name for p in conf.iterdir() if p.is_dir() and p.name not in (BASE, LOCAL))
            raise MissingConfigException(f"there is no environment '{name}' in {conf}; there are: {', '.join(there)}")
        chain.append(name)
        name = _extended_by(conf / name / "recipe.yml")
    layers = [BASE, *reversed(chain)]
    return [*layers, LOCAL] if (conf / LOCAL).is_dir() else layers


def project_path() -> Path:
    """Folder of the project that this process works in; relative paths of a recipe start here."""
    loader = RecipeConfigLoader.active
    if loader is None:  # a loader that has read nothing yet is an empty mapping
        return find_kedro_project(Path.cwd()) or Path.cwd()
    return Path(loader.conf_source).parent


def active_parameters() -> dict[str, Any]:
    """Parameters of the recipe that this process works with.

    Where no session has made a config loader yet (`kedro registry list`), `KEDRO_ENV` selects the recipe.
    """
    loader = RecipeConfigLoader.active
    if loader is None:
        loader = RecipeConfigLoader(project_path() / "conf", os.environ.get("KEDRO_ENV"), **CONFIG_LOADER_ARGS)
    return loader["parameters"]


def _members_of_all(conf: Path) -> set[str]:
    """Members and captioners of every environment."""
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in conf.glob("*/parameters*.yml")]
    return {name for content in files for name in _named(content)}


def _named(parameters: Mapping[str, Any]) -> list[str]:
    """Members and captioners that parameters list."""
    return [name for key in NAME_LISTS for name in parameters.get(key) or []]


def _at(parameters: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping at a path, or an empty one where there is none."""
    found: Any = parameters
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _extended_by(file: Path) -> str | None:
    if not file.is_file():
        return None
    content = yaml.safe_load(file.read_text()) or {}
    unknown = set(content) - {"extends"}
    if unknown:
        raise ValueError(f"{file}: unknown key {sorted(unknown)[0]!r}; the only one is 'extends'")
    extends: str | None = content.get("extends")
    return extends
