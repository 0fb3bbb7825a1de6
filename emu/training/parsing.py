"""From the words of a training command to a configuration; what is wrong with them is told all at once.

A parser stops at its first mistake. Where it does, every key is tried alone, and so is every option after those before it: each wrong one
gives a problem of its own, and what is left can still be checked further.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from emu.configuration import import_object, search_working_folder
from emu.configuration.problems import Problem
from emu.configuration.resolving import Resolved, resolve
from emu.configuration.written import KeyPath, Written, dotted, leaves
from emu.training.words import Words, split_option, with_values

NO_DATA = {"class_path": "lightning.pytorch.LightningDataModule"}
"""Stands for data that cannot be built, so that the rest can be looked at."""
UNKNOWN = re.compile(r"Option '([^']*)' is not accepted|does not accept option '([^']*)'|Unrecognized arguments: (.*)")
REQUIRED = re.compile(r"Option '([^']*)' is required")
CLASS = re.compile(r"Problem with given class_path '([^']*)'")
EXPECTED = re.compile(r"Expected an? (.*?)(?:\. Got value.*)?$", re.MULTILINE)
NOT_A_SUBCLASS = re.compile(r"(?:Not a valid subclass of|does not correspond to a subclass of) (\S+)")
PLAIN = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'dict'>": "keys with values",
    "<class 'list'>": "a list",
}


@dataclass
class Parsed:
    """A command line that was read.

    Attributes:
        config: of everything that could be read; None where even the rest cannot be.
        written: what recipes and options say.
        resolved: the values of their interpolations.
        problems: everything wrong so far.
    """

    config: Namespace | None
    written: Written
    resolved: Resolved
    problems: list[Problem] = field(default_factory=list)


def parse(parser: LightningArgumentParser, words: Words) -> Parsed:
    """Read a command line.

    Raises:
        ValueError, FileNotFoundError: a recipe cannot be read at all; see `Written.add_file`.
    """
    search_working_folder()
    written = words.read()
    resolved = resolve(written)
    problems = [Problem(text, path) for path, text in resolved.problems.items()]
    problems += [
        Problem(f"{word!r} belongs to no option; a recipe is named by --config {word}") for word in words.stray
    ]
    tree, options = with_values(words, written, resolved)
    try:
        return Parsed(_parsed(parser, tree, options), written, resolved, problems)
    except (ArgumentError, ValueError, TypeError) as error:
        found = _Search(parser, written).problems(tree, options, str(error))
        config, more = _rest(parser, tree, options, written)
        return Parsed(config, written, resolved, problems + found + more)


def _parsed(parser: LightningArgumentParser, tree: dict[str, Any], options: list[str]) -> Namespace:
    return parser.parse_args([*(["--config", yaml.safe_dump(tree, sort_keys=False)] if tree else []), *options])


class _Search:
    """Finds everything that a parser refuses, taking it out of the tree and the options."""

    def __init__(self, parser: LightningArgumentParser, written: Written) -> None:
        self._parser, self._written = parser, written

    def problems(self, tree: dict[str, Any], options: list[str], first: str) -> list[Problem]:
        found = []
        for path, value in list(leaves(tree)):
            message = self._refusal(_alone(tree, path, value), [])
            if message is not None:
                found.append(_told(self._parser, path, value, message))
                _remove(tree, path)
        good: list[str] = []
        for option in options:
            message = self._refusal(tree, [*good, option])
            if message is None:
                good.append(option)
            else:
                key, value = split_option(option)
                found.append(_told(self._parser, self._path(key), value, message))
        options[:] = good
        if not found and not REQUIRED.search(first):
            found.append(Problem(first))
        return found

    def _refusal(self, tree: dict[str, Any], options: list[str]) -> str | None:
        try:
            _parsed(self._parser, tree, options)
        except (ArgumentError, ValueError, TypeError) as error:
            return None if REQUIRED.search(str(error)) else str(error)
        return None

    def _path(self, option: str) -> KeyPath:
        known = [
            path for path, place in self._written.places.items() if dotted(path).replace(".init_args", "") == option
        ]
        return known[-1] if known else tuple(option.split("."))


def _rest(
    parser: LightningArgumentParser, tree: dict[str, Any], options: list[str], written: Written
) -> tuple[Namespace | None, list[Problem]]:
    """The configuration without what was taken out, and which keys are missing from it."""
    missing = missing_keys(written.tree)
    problems = [Problem(f"{dotted(path)} is missing; {reason}", path[:1]) for path, reason in missing]
    if any(path[0] == "data" for path, _ in missing) or "data" not in tree:
        tree["data"] = NO_DATA
        options = [option for option in options if not option.startswith("--data")]
    try:
        return _parsed(parser, tree, options), problems
    except (ArgumentError, ValueError, TypeError) as error:
        return None, problems or [Problem(str(error))]


def missing_keys(tree: Any, path: KeyPath = ()) -> list[tuple[KeyPath, str]]:
    """What the classes of a tree need and nothing sets, by path, with the reason."""
    if not path and "data" not in tree:
        return [(("data",), "name the class of the data and what it takes")]
    found = []
    if isinstance(tree, dict):
        if isinstance(tree.get("class_path"), str):
            given = tree.get("init_args")
            for key in sorted(required_by(tree["class_path"]) - set(given if isinstance(given, dict) else ())):
                found.append(((*path, "init_args", key), f"{tree['class_path']} needs it"))
        for key, value in tree.items():
            found += missing_keys(value, (*path, key))
    return found


def required_by(class_path: str) -> set[str]:
    """Names of the arguments without a default of a class; none where it cannot be found."""
    parser = _class_parser(class_path)
    return set() if parser is None else {key.partition(".")[0] for key in parser.required_args}


def _class_parser(class_path: str) -> ArgumentParser | None:
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(import_object(class_path), fail_untyped=False, sub_configs=True)
    except ValueError:
        return None
    return parser


def _alone(tree: Any, path: KeyPath, value: Any) -> Any:
    """A tree of one value, and of the classes on its way."""
    if not path:
        return value
    key, *rest = path
    below = _alone(tree[key], tuple(rest), value) if rest else value
    if isinstance(key, int):
        return [below]
    classes = {"class_path": tree["class_path"]} if key == "init_args" and "class_path" in tree else {}
    return {**classes, key: below}


def _remove(tree: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        tree = tree[part]
    if isinstance(tree, dict):
        tree.pop(path[-1])


def _told(parser: LightningArgumentParser, path: KeyPath, value: Any, message: str) -> Problem:
    """One refusal in plain words."""
    key = dotted(path)
    if path[-1:] == ("class_path",) and isinstance(value, str) and "." in value:
        try:
            import_object(value)
        except ValueError as error:
            return Problem(f"{key}: {error}", path)
    detail = message[message.rfind('Parser key "') :] if 'Parser key "' in message else message
    unknown = UNKNOWN.search(message)
    if unknown:
        near = difflib.get_close_matches(str(path[-1]), _siblings(parser, path, message), n=1)
        return Problem(f"{key} is not a key that exists" + (f"; did you mean {near[0]}?" if near else ""), path)
    subclass = NOT_A_SUBCLASS.search(message)
    kinds = [PLAIN.get(kind, _plain(kind)) for kind in EXPECTED.findall(detail) if kind != "<class 'NoneType'>"]
    if subclass:
        kinds = [f"the class path of a {subclass[1]}"]
    if not kinds:
        return Problem(f"{key}: {message.splitlines()[0]}", path)
    return Problem(f"{key} is {value!r}; expected {' or '.join(dict.fromkeys(kinds))}", path)


def _plain(kind: str) -> str:
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if choices:
        return f"one of {choices[1].replace(chr(39), '')}"
    return kind.removeprefix("<class '").removesuffix("'>")


def _siblings(parser: LightningArgumentParser, path: KeyPath, message: str) -> list[str]:
    """Names that stand beside a key where it was looked for."""
    classes = CLASS.findall(message)
    inside = _class_parser(classes[-1]) if classes else None
    if inside is not None:
        return [key.rpartition(".")[2] for key in inside.get_defaults().keys()]  # noqa: SIM118 (a Namespace)
    above = [str(part) for part in path[:-1]]
    known = [key.split(".") for key in parser.get_defaults().keys()]  # noqa: SIM118
    return sorted({key[len(above)] for key in known if key[: len(above)] == above and len(key) > len(above)})
