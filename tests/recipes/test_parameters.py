"""Each recipe's page says which value the publication has, which ours, and why; the config itself is the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.tables import (
    ALLOWED_IN_TWINS,
    MISSING,
    PAGES,
    difference,
    loaded,
    models_of,
    overrides,
    parsed,
    published,
    recipes,
    set_by,
    value_at,
)

# Not parameters of the published system: where things lie, and how they are found there.
UNLISTED = ("data.root", "data.sources", "predict", "member_names", "captioner_names", "synthetic", "data.groups")


def test_pages_are_found_and_listed_in_the_index() -> None:
    assert "iflytek" in recipes()
    index = (PAGES / "README.md").read_text()
    for recipe in recipes():
        assert f"({recipe}.md)" in index
        assert f"--env={recipe}`" in index


@pytest.mark.parametrize("recipe", recipes())
def test_the_values_of_the_page_are_those_of_the_config(recipe: str) -> None:
    config = loaded(recipe)
    rows = published(PAGES / f"{recipe}.md")
    assert len(rows) >= 15
    wrong = [
        f"{row.parameter}: the page says {row.ours!r}, the config {value_at(config, row.parameter)!r}"
        for row in rows
        if row.ours == "" or parsed(row.ours) != value_at(config, row.parameter)
    ]
    assert not wrong, "\n".join(wrong)
    names = [row.parameter for row in rows]
    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("recipe", recipes())
def test_every_difference_to_the_publication_has_a_reason_and_nothing_else_has(recipe: str) -> None:
    for row in published(PAGES / f"{recipe}.md"):
        same = row.published == row.ours or parsed(row.published) == parsed(row.ours)
        assert same == (row.why == ""), f"{row.parameter}: {row.published!r} beside {row.ours!r}, because {row.why!r}"


@pytest.mark.parametrize("recipe", recipes())
def test_what_the_recipe_sets_is_listed(recipe: str) -> None:
    listed = [row.parameter for row in published(PAGES / f"{recipe}.md")]
    missing = [
        key
        for key in set_by(recipe)
        if not key.startswith(UNLISTED) and not any(key == name or key.startswith(f"{name}.") for name in listed)
    ]
    assert not missing, f"the page of {recipe} does not list {missing}"
    for model in models_of(recipe):
        assert {f"{model}.train.lr", f"{model}.train.batch_size", f"{model}.train.epochs"} <= set(listed)


@pytest.mark.parametrize("recipe", recipes())
def test_the_twin_overrides_exactly_what_the_page_says(recipe: str) -> None:
    real = difference(loaded(recipe), loaded(f"{recipe}_twin"))
    said = {row.parameter: (parsed(row.recipe), parsed(row.twin)) for row in overrides(PAGES / f"{recipe}.md")}
    assert said == real


@pytest.mark.parametrize("recipe", recipes())
def test_the_twin_overrides_only_sizes_places_and_the_schedule(recipe: str) -> None:
    real = difference(loaded(recipe), loaded(f"{recipe}_twin"))
    assert real
    forbidden = [path for path in real if not ALLOWED_IN_TWINS.fullmatch(path)]
    assert not forbidden, f"{recipe}_twin also overrides {forbidden}"


@pytest.mark.parametrize("recipe", recipes())
def test_the_page_has_the_commands_and_a_place_for_the_memory(recipe: str) -> None:
    text = (PAGES / f"{recipe}.md").read_text()
    assert f"kedro run --env={recipe}\n" in text
    assert f"python -m tests.recipes.twins {recipe}\n" in text
    assert f"kedro run --env={recipe}_twin\n" in text
    assert text.index("<!-- memory -->") < text.index("<!-- /memory -->")


def test_tables_are_read_with_escapes_wildcards_and_several_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.recipes.tables.models_of", lambda env: ["a", "b", "ab"])
    page = tmp_path / "some.md"
    page.write_text(
        "text\n\n| parameter | published | ours | why it differs |\n|---|---|---:|---|\n"
        "| `a*.train.lr` | 4e-5 | `4.0e-5` | |\n| `images.fit` | x \\| y | `squash` | `a` and `b` |\n\n"
        "| parameter | recipe | twin |\n|---|---|---|\n| `*.lora` | `{rank: 1}` | `null` |\n"
    )
    rows = published(page)
    assert [row.parameter for row in rows] == ["a.train.lr", "ab.train.lr", "images.fit"]
    assert parsed(rows[0].published) == parsed(rows[0].ours) == 4e-5
    assert rows[2].published == "x | y"
    assert rows[2].why == "`a` and `b`"
    assert [(row.parameter, parsed(row.recipe), parsed(row.twin)) for row in overrides(page)] == [
        (f"{model}.lora", {"rank": 1}, None) for model in ("a", "b", "ab")
    ]


def test_differences_are_found_both_ways() -> None:
    recipe = {"a": {"lr": 1, "lora": {"rank": 1}, "gone": 0}, "b": [1]}
    twin = {"a": {"lr": 1, "lora": None, "new": 2}, "b": [1]}
    assert difference(recipe, twin) == {
        "a.lora": ({"rank": 1}, None),
        "a.gone": (0, MISSING),
        "a.new": (MISSING, 2),
    }
