"""Lays out the data and the small models of a recipe's twin: `python -m tests.recipes.twins RECIPE ...`.

What a twin reads lies as the publication has it: real photos and sentences under the published names, random weights in
the files that a hub would give, with the real tokenizers. So `kedro run --env=<recipe>_twin` runs no code of its own.
"""

from __future__ import annotations

import argparse
import shutil
from importlib import import_module
from pathlib import Path

from tests.recipes.sizes import FULL, Size

LAYOUTS = sorted(file.stem.removeprefix("layout_") for file in Path(__file__).parent.glob("layout_*.py"))


def lay_out(recipe: str, project: Path, size: Size = FULL) -> Path:
    """Write what the twin of a recipe reads, in place of what lies there.

    Args:
        recipe: Its name; `tests/recipes/layout_<recipe>.py` does the work.
        project: Folder of the project.
        size: How many photos.

    Returns:
        The folder, `data/01_raw/<recipe>_twin` of the project.
    """
    folder = project / "data/01_raw" / f"{recipe}_twin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    import_module(f"tests.recipes.layout_{recipe}").lay_out(project, size)
    return folder


def main() -> None:
    """Lay out the twins that the command line names, in the project of the working directory."""
    parser = argparse.ArgumentParser(description="Write the data and the random weights of small twins of recipes.")
    parser.add_argument("recipes", nargs="+", choices=LAYOUTS, metavar="RECIPE", help=", ".join(LAYOUTS))
    parser.add_argument("--train", type=int, default=FULL.train, help="photos to learn from")
    parser.add_argument("--held-out", type=int, default=FULL.held_out, help="photos of val or test")
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        folder = lay_out(recipe, Path.cwd(), Size(arguments.train, arguments.held_out))
        print(f"{folder} is laid out; next: kedro run --env={recipe}_twin")


if __name__ == "__main__":
    main()
