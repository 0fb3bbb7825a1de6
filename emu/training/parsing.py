"""From the words of a training command to a configuration; what is wrong with them is reported all at once.

A parser stops at its first mistake. Where it does, every part is tried alone, those that are refused part by part down to single keys, and
every option after those before it: each wrong one gives a problem of its own, and what is left can still be looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from emu.configuration import load_extensions, search_working_folder
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.resolving import Resolved, resolve
from emu.configuration.written import KeyPath, Written, dotted
from emu.training.nulls import null_problems
from emu.training.refusals import describe_refusal, is_of_a_missing_part, is_of_something_missing, required_by
from emu.training.words import Words, split_option, with_values

REFUSALS = (ArgumentError, ValueError, TypeError)
NO_DATA = {"class_path": "lightning.pytorch.LightningDataModule"}
"""Stands for data that cannot be built, so that the rest can be looked at."""
STRUCK = object()
"""Stands in a list for what was taken out of it, so that the places of the others stay."""


@dataclass
class Parsed:
    """A command line that was read.

    Attributes:
        config: of everything that could be read; None where even that fails.
        written: what recipes and options say.
        resolved: the values of their interpolations.
        problems: everything wrong so far.
    """

    config: Namespace | None
    written: Written
    resolved: Resolved
    problems: list[Problem] = field(default_factory=list)


def parse(
    parser: LightningArgumentParser, words: Words, written: Written, classes: Mapping[str, type] | None = None
) -> Parsed:
    """Read a command line.

    Args:
        parser: of the command.
        words: of the command line.
        written: what its recipes and options say, without the class of the module.
        classes: see `emu.training.nulls.null_problems`.

    Raises:
        ValueError: words without an option, and no recipe.
    """
    search_working_folder()
    load_extensions()
    resolved = resolve(written)
    problems = [Problem(text, path) for path, text in resolved.problems.items()]
    for word in words.stray:
        problems.append(Problem(f"{word!r} belongs to no option; a recipe is named by --config {word}", ()))
    if words.stray and not words.files:
        raise_problems(problems)  # what else is missing is missing for that
    tree, options = with_values(words, written, resolved)
    for problem in null_problems(classes or {}, resolved.of(written.tree)):
        problems.append(problem)
        assert problem.path is not None
        _strike(tree, problem.path)
        options = [option for option in options if _path_of(option, written) != problem.path]
    try:
        return Parsed(parsed(parser, tree, options), written, resolved, problems)
    except REFUSALS as error:
        search = Search(parser, written, resolved, tree, options)
        problems += search.problems()
        try:
            config = parsed(parser, search.tree, search.options)
        except REFUSALS:
            config = None
        return Parsed(config, written, resolved, problems or [Problem(str(error), ())])


def parsed(parser: LightningArgumentParser, tree: Any, options: list[str]) -> Namespace:
    """What a parser makes of a tree and of options over it."""
    tree = _without_struck(tree)
    return parser.parse_args([*(["--config", yaml.safe_dump(tree, sort_keys=False)] if tree else []), *options])


class Search:
    """Finds everything that a parser refuses, and takes it out.

    Args:
        parser: that refused something.
        written: what recipes and options say.
        resolved: values of its interpolations.
        tree: the recipes, without interpolations.
        options: the command line, likewise.

    Attributes:
        tree: what is good of the recipes, once `problems` has been called.
        options: what is good of the command line.
    """

    def __init__(
        self, parser: LightningArgumentParser, written: Written, resolved: Resolved, tree: Any, options: list[str]
    ) -> None:
        self._parser, self._written = parser, written
        self._all = resolved.of(written.tree)
        self.tree, self.options = copy.deepcopy(tree), list(options)

    def problems(self) -> list[Problem]:
        """One for each key that is refused or missing, in the order in which they are written."""
        found = self._below((), self.tree) + self._in_options()
        for path, why in missing_keys(self._written.tree):
            found.append(Problem(f"{dotted(path)} is missing; {why}", path))
        self._strike_incomplete()
        order = {path: number for number, path in enumerate(self._written.places)}
        return sorted(found, key=lambda problem: order.get(problem.path or (), len(order)))

    def _below(self, path: KeyPath, node: Any) -> list[Problem]:
        """Problems of a part of the tree: of the part alone, or, where that is refused, of each part of it."""
        message = self._refusal(_alone(self.tree, path, node), [])
        if message is None:
            return []
        if isinstance(node, dict) and "class_path" in node:
            found = self._below((*path, "class_path"), node["class_path"])
            if found:  # nothing can be said of the arguments of a class that is not there
                self._strike(path)
                return found
        found = [problem for key, value in _parts(node) for problem in self._below((*path, key), value)]
        if not found and path and not is_of_something_missing(message):
            found = [describe_refusal(self._parser, path, node, message)]
            self._strike(path)
        elif found and path:
            left = self._refusal(_alone(self.tree, path, _at(self.tree, path)), [])
            if left is not None and not is_of_something_missing(left):
                self._strike(path)  # what is left is refused too, and must not be taken for a fault of something else
        return found

    def _in_options(self) -> list[Problem]:
        message = self._refusal(self.tree, self.options)
        if message is None or is_of_something_missing(message):
            return []
        found = []
        options, self.options = self.options, []
        for option in options:
            message = self._refusal(self.tree, [*self.options, option])
            if message is None or is_of_something_missing(message):
                self.options.append(option)
                continue
            value = split_option(option)[1]
            path = _path_of(option, self._written)
            found.append(describe_refusal(self._parser, path, value, message))
            _strike(self._all, path)  # the recipes say what they said
        return found

    def _strike_incomplete(self) -> None:
        """Take out what cannot be built without what was taken out before; it is not a problem of its own."""
        for path, _ in missing_keys(self._all):
            self._strike(path[:-2] if path[-2:-1] == ("init_args",) else path)
        if "data" not in self.tree:
            self.tree["data"] = NO_DATA
            self.options = [option for option in self.options if not option.startswith("--data")]

    def _strike(self, path: KeyPath) -> None:
        _strike(self.tree, path)
        _strike(self._all, path)

    def _refusal(self, tree: Any, options: list[str]) -> str | None:
        """What the parser says against it; that other parts are missing is nothing against it."""
        try:
            if options:
                parsed(self._parser, tree, options)
            else:
                self._parser.parse_object(copy.deepcopy(_without_struck(tree)))  # parse_args is slower
        except REFUSALS as error:
            return None if is_of_a_missing_part(str(error)) else str(error)
        return None


def _path_of(option: str, written: Written) -> KeyPath:
    """The path of an option, whose words may leave `init_args` out."""
    key = split_option(option)[0]
    short = key.replace(".init_args", "")
    known = [path for path in written.places if dotted(path).replace(".init_args", "") == short]
    return known[-1] if known else tuple(key.split("."))


def missing_keys(tree: Any, path: KeyPath = ()) -> list[tuple[KeyPath, str]]:
    """What the classes of a tree need and nothing sets, by path, with the reason."""
    if not path and tree.get("data") is None:
        return [(("data",), "name the class of the data and what it takes")]
    found: list[tuple[KeyPath, str]] = []
    if isinstance(tree, dict) and isinstance(tree.get("class_path"), str):
        given = tree.get("init_args")
        for key in sorted(required_by(tree["class_path"]) - set(given if isinstance(given, dict) else ())):
            found.append(((*path, "init_args", key), f"{tree['class_path']} needs it"))
    below = dict(enumerate(tree)) if isinstance(tree, list) else tree
    for key, value in below.items() if isinstance(below, dict) else ():
        found += missing_keys(value, (*path, key))
    return found


def _alone(tree: Any, path: KeyPath, value: Any) -> Any:
    """A tree of one value, and of the classes on its way."""
    if not path:
        return value
    key, *rest = path
    below = _alone(tree[key], tuple(rest), value)
    if isinstance(key, int):
        return [below]
    classes = {"class_path": tree["class_path"]} if key == "init_args" and "class_path" in tree else {}
    return {**classes, key: below}


def _parts(node: Any) -> list[tuple[str | int, Any]]:
    """What a part of a tree consists of; a list of plain values is one value."""
    if isinstance(node, dict):
        return list(node.items())
    nested = isinstance(node, list) and any(isinstance(value, (dict, list)) for value in node)
    return list(enumerate(node)) if nested else []


def _at(node: Any, path: KeyPath) -> Any:
    """What stands in a tree; None where it was taken out."""
    for part in path:
        node = node[part] if _has(node, part) else None
    return node


def _strike(node: Any, path: KeyPath) -> None:
    """Take a value out of a tree, if it is there."""
    for part in path[:-1]:
        node = node[part] if _has(node, part) else None
    if _has(node, path[-1]) and isinstance(node, list):
        node[path[-1]] = STRUCK  # type: ignore[index]
    elif _has(node, path[-1]):
        del node[path[-1]]


def _without_struck(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_struck(value) for key, value in tree.items()}
    return [_without_struck(value) for value in tree if value is not STRUCK] if isinstance(tree, list) else tree


def _has(node: Any, part: str | int) -> bool:
    return part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
