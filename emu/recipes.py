"""Recipes: the configurations and scripts that travel with the package.

In a checkout they lie in `recipes/` beside `emu/`, in an installed package in `emu/recipes/`. Every command that takes `--config` takes the
bare name of one too: `emu fit --config digits`.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".yaml", ".py", ".sh")


def recipe_folder() -> Path:
    """Where the recipes lie.

    Raises:
        FileNotFoundError: neither place exists; the installation is broken.
    """
    inside = Path(__file__).with_name("recipes")
    beside = Path(__file__).parents[1] / "recipes"
    for folder in (inside, beside):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no recipes at {inside} or {beside}; install the package again")


def list_recipes() -> dict[str, Path]:
    """Recipes by file name, sorted."""
    return {path.name: path for path in sorted(recipe_folder().iterdir()) if path.suffix in SUFFIXES}


def describe_recipe(path: Path) -> str:
    """What a recipe says about itself: its first line of comment or docstring."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip().lstrip("#").strip().strip('"').strip()
        if text and not line.startswith("#!"):
            return text
    return ""


def find_recipe(name: str, suffix: str = "") -> Path:
    """The recipe of this name, with or without its suffix.

    Args:
        name: e.g. "digits" or "digits.yaml".
        suffix: where several recipes differ in it alone, the one wanted, e.g. ".yaml".

    Raises:
        FileNotFoundError: there is none; the message lists what there is.
    """
    known = list_recipes()
    for candidate in (f"{name}{suffix}", name, *(f"{name}{other}" for other in SUFFIXES)):
        if candidate in known and candidate.endswith(suffix):
            return known[candidate]
    offered = [file.removesuffix(suffix) for file in known if file.endswith(suffix)]
    raise FileNotFoundError(f"no file and no recipe {name!r}{did_you_mean(name, 'recipes', offered)}")


def did_you_mean(word: str, kind: str, known: Sequence[str]) -> str:
    """What follows on "there is no X": the word that was probably meant, and all that are known, e.g. `kind` "recipes"."""
    near, listed = difflib.get_close_matches(word, known, n=1), ", ".join(known) or "none"
    return f"; did you mean {near[0]}? The {kind} are {listed}" if near else f"; the {kind} are {listed}"


def resolve_config(value: str) -> Path:
    """What `--config VALUE` means: an existing file, or else the bare name of a recipe.

    Raises:
        FileNotFoundError: it is neither.
    """
    path = Path(value)
    if path.is_file():
        return path
    if path.name != value:
        raise FileNotFoundError(f"no configuration file {value}")
    return find_recipe(value, ".yaml")


def copy_recipe(name: str, destination: Path) -> Path:
    """Write a recipe out, to be changed.

    Args:
        name: of the recipe, with or without suffix.
        destination: a folder, or the new file.

    Returns:
        The new file.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: the new file exists already.
    """
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise ValueError(f"{target} exists already; name another file, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
