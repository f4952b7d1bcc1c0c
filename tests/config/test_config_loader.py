"""Recipes are read through their layers, and the registry sees the members of the active one."""

from pathlib import Path

import pytest
import yaml
from kedro.config import MissingConfigException

from xmodal_kedro.config_loader import (
    CONFIG_LOADER_ARGS,
    RecipeConfigLoader,
    active_parameters,
    layers_of,
    project_path,
)
from xmodal_kedro.datasets.directory import training_states


@pytest.fixture(autouse=True)
def _forget_the_active_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecipeConfigLoader, "active", None)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "conf"
    tmp_path.mkdir()
    write(
        tmp_path, "base/parameters.yml", {"member_names": ["a", "b"], "a": {"train": {"lr": 1.0, "epochs": 3}}, "b": {}}
    )
    write(tmp_path, "base/catalog.yml", {"pairs": {"type": "MemoryDataset"}})
    write(tmp_path, "traffic/parameters.yml", {"member_names": ["a", "big"], "a": {"train": {"lr": 0.5}}, "big": {}})
    write(tmp_path, "traffic_twin/recipe.yml", {"extends": "traffic"})
    write(tmp_path, "traffic_twin/parameters.yml", {"a": {"train": {"epochs": 1}}})
    write(tmp_path, "local/parameters.yml", {"runtime": {"threads": 1}})
    return tmp_path


def write(conf: Path, name: str, content: dict) -> None:
    (conf / name).parent.mkdir(exist_ok=True)
    (conf / name).write_text(yaml.safe_dump(content))


def parameters(conf: Path, env: str | None, **runtime_params: object) -> dict:
    return RecipeConfigLoader(conf, env, runtime_params=runtime_params, **CONFIG_LOADER_ARGS)["parameters"]


def test_without_an_environment_base_and_local_are_read(conf: Path) -> None:
    assert layers_of(conf, None) == layers_of(conf, "local") == layers_of(conf, "base") == ["base", "local"]
    read = parameters(conf, None)
    assert read["member_names"] == ["a", "b"]
    assert read["runtime"] == {"threads": 1}


def test_a_twin_stands_on_its_recipe_and_local_comes_last(conf: Path) -> None:
    assert layers_of(conf, "traffic_twin") == ["base", "traffic", "traffic_twin", "local"]
    read = parameters(conf, "traffic_twin")
    assert read["member_names"] == ["a", "big"]
    assert read["a"] == {"train": {"lr": 0.5, "epochs": 1}, "name": "a"}
    assert read["runtime"] == {"threads": 1}


def test_members_of_a_lower_layer_that_are_not_used_are_gone(conf: Path) -> None:
    assert "b" not in parameters(conf, "traffic")


def test_weights_of_members_and_captioners_that_are_not_used_are_gone(conf: Path) -> None:
    mixed = {"fusion": {"weights": {"a": 0.5, "b": 0.5}, "normalisations": {"b": "rank"}}}
    captions = {"captioner_names": ["one", "two"], "one": {}, "two": {}}
    captions["captioning"] = {"ensemble": {"weights": {"one": 0.7, "two": 0.3, "misspelt": 0.1}}}
    write(conf, "base/parameters_mixed.yml", {"ensemble": mixed, **captions})
    write(conf, "traffic/parameters_captions.yml", {"captioner_names": ["two"]})
    read = parameters(conf, "traffic")
    assert read["ensemble"]["fusion"] == {"weights": {"a": 0.5}}
    assert read["captioning"]["ensemble"]["weights"] == {"two": 0.3, "misspelt": 0.1}
    assert "one" not in read
    assert parameters(conf, None)["captioning"]["ensemble"]["weights"]["one"] == 0.7
    del captions["captioning"]["ensemble"]["weights"]["misspelt"]
    write(conf, "base/parameters_mixed.yml", {"ensemble": mixed, **captions})
    write(conf, "traffic/parameters_captions.yml", {"captioner_names": []})
    assert parameters(conf, "traffic")["captioning"] == {"ensemble": {}}


def test_runtime_parameters_come_after_every_layer(conf: Path) -> None:
    assert parameters(conf, "traffic_twin", a={"train": {"lr": 9.0}})["a"]["train"] == {"lr": 9.0, "epochs": 1}


def test_runtime_parameters_may_shorten_the_lists_of_names(conf: Path) -> None:
    weights = {"captioning": {"ensemble": {"weights": {"one": 0.7, "two": 0.3}}}}
    write(conf, "traffic/parameters_captions.yml", {"captioner_names": ["one", "two"], "one": {}, "two": {}, **weights})
    (conf / "local/parameters.yml").unlink()
    read = parameters(conf, "traffic", member_names=["big"], captioner_names=["two"])
    assert read.keys() == {"member_names", "big", "captioner_names", "two", "captioning"}
    assert read["captioning"]["ensemble"]["weights"] == {"two": 0.3}


@pytest.mark.parametrize(
    ("env", "data"), [("traffic", "data/traffic"), ("traffic_twin", "data/traffic_twin"), (None, "data")]
)
def test_paths_are_those_of_the_recipe_that_nobody_has_read_yet(
    conf: Path, env: str | None, data: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loader = RecipeConfigLoader(conf, env, **CONFIG_LOADER_ARGS)
    assert not len(loader)  # it is a mapping, and empty at first
    assert project_path() == conf.parent
    assert training_states() == conf.parent / data / ".training"


def test_the_catalog_of_base_is_there_under_every_environment(conf: Path) -> None:
    loader = RecipeConfigLoader(conf, "traffic_twin", **CONFIG_LOADER_ARGS)
    assert loader["catalog"] == {"pairs": {"type": "MemoryDataset"}}


def test_what_an_environment_writes_lies_in_a_folder_of_its_own(conf: Path) -> None:
    write(conf, "base/catalog.yml", {"pairs": {"type": "json.JSONDataset", "filepath": "data/03_primary/pairs.json"}})
    for env, path in ((None, "data/03_primary"), ("traffic", "data/traffic/03_primary")):
        loader = RecipeConfigLoader(conf, env, **CONFIG_LOADER_ARGS)
        assert loader["catalog"]["pairs"]["filepath"] == f"{path}/pairs.json"


def test_an_unknown_environment_names_those_there(conf: Path) -> None:
    with pytest.raises(MissingConfigException, match=r"no environment 'trafic'.*traffic, traffic_twin"):
        layers_of(conf, "trafic")


def test_environments_cannot_extend_each_other_in_a_circle(conf: Path) -> None:
    write(conf, "traffic/recipe.yml", {"extends": "traffic_twin"})
    with pytest.raises(ValueError, match="stands on it already"):
        layers_of(conf, "traffic_twin")


def test_a_misspelt_key_in_recipe_yml_is_an_error(conf: Path) -> None:
    write(conf, "traffic/recipe.yml", {"extend": "base"})
    with pytest.raises(ValueError, match="'extend'"):
        layers_of(conf, "traffic")


def test_the_registry_reads_the_recipe_of_the_last_loader_or_of_kedro_env(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kedro.config_loader.project_path", lambda: conf.parent)
    monkeypatch.setenv("KEDRO_ENV", "traffic")
    assert active_parameters()["member_names"] == ["a", "big"]
    parameters(conf, None)
    assert active_parameters()["member_names"] == ["a", "b"]


def test_local_may_speak_of_the_members_of_another_recipe(conf: Path) -> None:
    write(conf, "local/parameters.yml", {"big": {"backbone": {"weights": "/models/big"}}, "bgi": {}})
    read = parameters(conf, None)
    assert "big" not in read
    assert "bgi" in read  # in no recipe: the check of the recipe names it
    assert parameters(conf, "traffic")["big"]["backbone"] == {"weights": "/models/big"}
