"""Nulls in a recipe where a class takes none: a parser lets them pass, and the class would fail on them much later."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from emu.configuration import import_object
from emu.configuration.problems import Problem
from emu.configuration.written import KeyPath, dotted
from emu.training.refusals import PLAIN


def null_problems(classes: Mapping[str, type], tree: Mapping[str, Any]) -> list[Problem]:
    """A problem for each null of a recipe that its class does not take, and for each part that is not a table.

    Args:
        classes: of the parts whose arguments stand directly under their names, by name.
        tree: the recipe, without interpolations.
    """
    found: list[Problem] = []
    for name, node in tree.items():
        if name in classes and not isinstance(node, dict):
            said = "null" if node is None else repr(node)
            found.append(Problem(f"{name} is {said}; expected keys with values", (name,)))
        elif name in classes:
            found += _in_class(classes[name], node, (name,))
        else:
            found += _in_value(Any, node, (name,))
    return found


def _in_class(cls: Any, arguments: Any, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with the arguments of a class; nothing is said of those that its signature does not tell."""
    try:
        hints = typing.get_type_hints(cls.__init__ if isinstance(cls, type) else cls)  # type: ignore[misc]
        parameters = inspect.signature(cls).parameters
    except (NameError, TypeError, ValueError, AttributeError):
        return  # the annotations of a class from elsewhere may be anything
    for key, value in arguments.items() if isinstance(arguments, dict) else ():
        if key in hints and key in parameters:
            yield from _in_value(hints[key], value, (*path, key), may_be_null=parameters[key].default is None)


def _in_value(hint: Any, value: Any, path: KeyPath, *, may_be_null: bool = False) -> Iterator[Problem]:
    kinds = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None:
        if not may_be_null and not {Any, None, type(None), object}.intersection(kinds):
            text = f"{dotted(path)} is null; expected {PLAIN.get(str(hint), 'a value')}, or leave the key out"
            yield Problem(text, path)
    elif isinstance(value, dict) and isinstance(value.get("class_path"), str):
        try:
            yield from _in_class(import_object(value["class_path"]), value.get("init_args"), (*path, "init_args"))
        except ValueError:  # which the parser tells
            return
    elif isinstance(value, dict):
        for kind in kinds:
            if is_dataclass(kind):
                yield from _in_class(kind, value, path)
            elif get_origin(kind) is dict:
                for key, one in value.items():
                    yield from _in_value(get_args(kind)[1], one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            if isinstance(one, dict):  # null in a list is what the parser refuses
                yield from _in_value(Any, one, (*path, number))
