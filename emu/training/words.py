"""The words of a training command: which recipes they name, and what the run is called after them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu.recipes import resolve_config

CONFIG_OPTIONS = ("--config", "-c")


def resolve_words(words: Sequence[str]) -> list[str]:
    """The command line with every value of --config turned into a path.

    Raises:
        FileNotFoundError: a value is neither a file nor a recipe.
    """
    resolved: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if resolved and resolved[-1] in CONFIG_OPTIONS:
            resolved.append(str(resolve_config(word)))
        elif equals and option in CONFIG_OPTIONS:
            resolved += [option, str(resolve_config(value))]
        else:
            resolved.append(word)
    return resolved


def as_list(value: Any) -> list[Any]:
    """None, one thing or several, as a new list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def run_name(words: Sequence[str]) -> str:
    """Name of a run: that of its last configuration file."""
    files = [value for option, value in zip(words, words[1:], strict=False) if option in CONFIG_OPTIONS]
    return Path(files[-1]).stem if files else "run"
