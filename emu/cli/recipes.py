"""`emu recipes`: list the recipes that ship with the package, or copy one to edit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from emu.recipes import copy_recipe, describe_recipe, list_recipes


def main(arguments: Sequence[str]) -> int:
    """Run `emu recipes`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="emu recipes", description="List the recipes, or copy one to edit.")
    actions = parser.add_subparsers(dest="action")
    copy = actions.add_parser("copy", help="copy a recipe")
    copy.add_argument("name", help="name of the recipe, with or without its suffix")
    copy.add_argument(
        "destination", nargs="?", type=Path, default=Path("."), help="folder or new file; by default the working folder"
    )
    options = parser.parse_args(arguments)
    if options.action == "copy":
        print(copy_recipe(options.name, options.destination))
        return 0
    recipes = list_recipes()
    width = max((len(name) for name in recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {describe_recipe(path)}")
    return 0
