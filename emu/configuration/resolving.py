"""Values of a recipe from what it writes: interpolations resolved by OmegaConf, all that cannot be told together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emu.configuration.resolvers import noting_environment, register_resolvers
from emu.configuration.written import KeyPath, Written, dotted

MARK = "${"
LEFT_OUT = object()


@dataclass
class Resolved:
    """Values without interpolations.

    Attributes:
        config: everything that is written.
        written: the values that are interpolations, as they are written, by path.
        values: what they come to, by path; only of those that can be resolved.
        environment: those of them that read an environment variable, themselves or through others.
        problems: one sentence for each that cannot be resolved, by path.
    """

    config: DictConfig
    written: dict[KeyPath, str] = field(default_factory=dict)
    values: dict[KeyPath, Any] = field(default_factory=dict)
    environment: set[KeyPath] = field(default_factory=set)
    problems: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, tree: Any, path: KeyPath = ()) -> Any:
        """A copy of a tree with values for its interpolations; what cannot be resolved, or something else replaced, is left out."""
        if isinstance(tree, dict):
            found = {key: self.of(value, (*path, key)) for key, value in tree.items()}
            return {key: value for key, value in found.items() if value is not LEFT_OUT}
        if isinstance(tree, list):
            items = [self.of(value, (*path, number)) for number, value in enumerate(tree)]
            return [value for value in items if value is not LEFT_OUT]
        if isinstance(tree, str) and MARK in tree:
            return self.values[path] if self.written.get(path) == tree and path in self.values else LEFT_OUT
        return tree

    def put_back(self, values: Any, texts: Mapping[KeyPath, str]) -> Any:
        """A copy of values with texts in the place of some of them, e.g. `written` for all that were interpolations.

        A value that is no longer there, e.g. of a list that the command line replaced, is passed over.
        """
        values = copy.deepcopy(values)
        for path, text in texts.items():
            node = values
            for part in path[:-1]:
                node = node[part] if _has(node, part) else None
            if _has(node, path[-1]):
                node[path[-1]] = text
        return values

    def from_environment(self) -> dict[KeyPath, str]:
        """The values that read an environment variable, as they are written."""
        return {path: self.written[path] for path in self.environment}


def resolve(written: Written) -> Resolved:
    """Resolve every interpolation; names are looked up in everything that files and command line write."""
    register_resolvers()
    config = OmegaConf.create(written.tree)
    found = Resolved(config)
    for path, text in _interpolations(written.tree):
        found.written[path] = text
        with noting_environment() as names:
            try:
                found.values[path] = _select(config, path)
            except (OmegaConfBaseException, RecursionError) as error:
                found.problems[path] = _told(path, text, error)
        if names:
            found.environment.add(path)
    return found


def _interpolations(tree: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _interpolations(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _interpolations(value, (*path, number))
    elif isinstance(tree, str) and MARK in tree:
        yield path, tree


def _select(config: Any, path: KeyPath) -> Any:
    for part in path:
        config = config[part]
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, Container) else config


def _told(path: KeyPath, text: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, RecursionError) or "Recursive interpolation" in reason:
        reason = "it refers back to itself; write one of the values of the circle as a number"
    elif reason.startswith("Interpolation key"):
        reason = f"{reason.split(chr(39))[1]} is written neither in a recipe nor on the command line"
    elif reason.startswith("Unsupported interpolation type"):
        reason = (
            f"there is no function {reason.split()[-1]!r}; there are oc.env, add, sub, mul, div, floordiv, min, max"
        )
    elif " raised while resolving interpolation: " in reason:
        reason = reason.partition(" raised while resolving interpolation: ")[2].strip('"')
    return f"{dotted(path)} is {text}, which cannot be resolved: {reason}"


def _has(node: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(node, list) and part < len(node)
    return isinstance(node, dict) and part in node
