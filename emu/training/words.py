"""The words of a training command, taken apart: which recipes they name, what they set, what the run is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from emu.configuration.resolving import MARK, Resolved
from emu.configuration.written import Written
from emu.recipes import resolve_config
from emu.training.module_class import split_class

CONFIG_OPTIONS = ("--config", "-c")


class Words(NamedTuple):
    """A command line.

    Attributes:
        files: the recipes, in order; what a later one says wins.
        options: "--key=value" for what is set over them, and flags such as "--help".
        stray: words that belong to no option.
        module: class path of the module, where an option names it.
    """

    files: list[Path]
    options: list[str]
    stray: list[str]
    module: str | None = None

    @property
    def run_name(self) -> str:
        """Name of a run: that of its last recipe."""
        return self.files[-1].stem if self.files else "run"

    def read(self, start: Written | None = None) -> Written:
        """The recipes merged, and what the options set over them.

        Args:
            start: what the recipes are merged over; it is changed.

        Raises:
            ValueError, FileNotFoundError: see `Written.add_file`.
        """
        written = Written() if start is None else start
        for file in self.files:
            written.add_file(file)
        for option in self.options:
            key, value = split_option(option)
            if value is not None and not key.endswith("+"):
                written.set(key, read_value(value))
        return written


def split_words(words: Sequence[str]) -> Words:
    """Take a command line apart.

    Raises:
        FileNotFoundError: a value of --config is neither a file nor a recipe.
        ValueError: --config without a value.
    """
    found = Words([], [], [])
    pending = list(words)
    while pending:
        word = pending.pop(0)
        option, equals, value = word.partition("=")
        takes_next = (
            not equals and bool(pending) and not pending[0].startswith("--") and pending[0] not in CONFIG_OPTIONS
        )
        if option in CONFIG_OPTIONS:
            if not equals and not takes_next:
                raise ValueError(f"{option} needs the name of a recipe or a file; `emu recipes` lists the recipes")
            found.files.append(resolve_config(value if equals else pending.pop(0)))
        elif not word.startswith("-"):
            found.stray.append(word)
        else:
            found.options.append(f"{word}={pending.pop(0)}" if takes_next and word.startswith("--") else word)
    options, modules = split_class(found.options)
    return found._replace(options=options, module=modules[-1] if modules else None)


def split_option(option: str) -> tuple[str, str | None]:
    """("a.b", "value") of "--a.b=value"; the value of a flag is None."""
    key, equals, value = option.removeprefix("--").partition("=")
    return key, value if equals else None


def read_value(text: str) -> Any:
    """What a word means as YAML: a number, a list, ...; text that is not YAML stays text.

    Raises:
        ValueError: an interpolation that is not closed.
    """
    try:
        node = OmegaConf.from_dotlist([f"value={text}"])
    except yaml.YAMLError:
        return text
    except GrammarParseError as error:
        raise ValueError(f"{text!r} is not an interpolation: {str(error).splitlines()[0]}") from error
    return OmegaConf.to_container(node, resolve=False)["value"]  # type: ignore[call-overload, index]


def with_values(words: Words, written: Written, resolved: Resolved) -> tuple[dict[str, Any], list[str]]:
    """Recipes as one tree and the options, both without interpolations; values that cannot be resolved are left out."""
    options = []
    for option in words.options:
        key, value = split_option(option)
        if value is not None and MARK in value and not key.endswith("+"):
            path = written.set(key, read_value(value))  # the same again, to know its path
            if path not in resolved.values:
                continue
            found = resolved.values[path]
            option = f"--{key}={found if isinstance(found, str) else json.dumps(found)}"
        options.append(option)
    return resolved.of(written.files), options


def as_list(value: Any) -> list[Any]:
    """None, one thing or several, as a new list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
