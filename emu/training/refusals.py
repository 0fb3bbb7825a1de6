"""What a parser or a constructor refuses, in plain words."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Any

from jsonargparse import ArgumentParser

from emu.configuration import import_object
from emu.configuration.problems import Problem
from emu.configuration.written import KeyPath, dotted

UNKNOWN = re.compile(
    r"Option '[^']*' is not accepted|does not accept option|Unrecognized arguments: |unrecognized arguments: "
)
REQUIRED = re.compile(r"Option '[^']*' is required")
CLASS = re.compile(r"Problem with given class_path '([^']*)'")
EXPECTED = re.compile(r"Expected an? (.*?)(?:\. Got value.*)?$", re.MULTILINE)
NOT_A_SUBCLASS = re.compile(r"(?:Not a valid subclass of|does not correspond to a subclass of) (\S+)")
LITERAL = re.compile(r"typing\.Literal\[(.*)\]")
NOTHING = "<class 'NoneType'>"
HEADINGS = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Parser key",
    "Problem with given class_path",
    f"Expected a {NOTHING}",
)
"""Starts of the lines that a parser puts around a reason."""
PLAIN = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'dict'>": "keys with values",
    "<class 'list'>": "a list",
}

RENAMED = {
    "model.lr": "model.optimizer.lr",
    "model.muon_lr": "model.optimizer.matrix_lr, with muon as model.optimizer.name",
    "model.lr_warmup_steps": "model.optimizer.warmup_steps",
    "model.weight_decay": "model.optimizer.weight_decay",
    "model.betas": "model.optimizer.beta1 and model.optimizer.beta2",
    "model.gradient_clip": "model.max_grad_norm",
    "model.rank": "it beside model.class_path, which is emu.training.lora.LoraModule",
}
"""Options in recipes of earlier versions, where they are unknown now -> what one writes today."""


def is_of_something_missing(message: str) -> bool:
    """Whether a parser asks for an option that is not there, rather than refusing one that is."""
    return bool(REQUIRED.search(message))


def is_of_a_missing_part(message: str) -> bool:
    """Whether it is an option of the parser itself that is not there, not one inside a part that is."""
    return bool(REQUIRED.match(message))


def describe_refusal(parser: ArgumentParser, path: KeyPath, value: Any, message: str) -> Problem:
    """What is wrong with a value, in a sentence.

    Args:
        parser: that refused it.
        path: of its key.
        value: as it was given.
        message: of the parser.
    """
    key = dotted(path)
    if path[-1:] == ("class_path",) and isinstance(value, str) and "." in value:
        try:
            import_object(value)
        except ValueError as error:
            return Problem(f"{key}: {error}", path)
    if UNKNOWN.search(message) and key in RENAMED:
        return Problem(f"{key} is an option of an earlier version; write {RENAMED[key]}", path)
    if UNKNOWN.search(message):
        near = difflib.get_close_matches(str(path[-1]), siblings(parser, path, message), n=1)
        return Problem(f"{key} is not a key that exists" + (f"; did you mean {near[0]}?" if near else ""), path)
    subclass = NOT_A_SUBCLASS.search(message)
    kinds = [f"the class path of a {subclass[1]}"] if subclass else expected_kinds(message)
    if not kinds:
        return Problem(f"{key}: {reason(message)}", path)
    return Problem(f"{key} is {value!r}; expected {' or '.join(kinds)}", path)


def expected_kinds(message: str) -> list[str]:
    """What a value should have been, e.g. ["an integer"]."""
    innermost = message[max(0, message.rfind('Parser key "')) :]
    kinds = [kind for kind in EXPECTED.findall(innermost) if kind != NOTHING]
    return list(dict.fromkeys(PLAIN.get(kind) or _choices(kind) for kind in kinds))


def reason(message: str) -> str:
    """What a message says, without the kinds, dumps and headings that a parser puts around it."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(HEADINGS)) or message.strip()


def siblings(parser: ArgumentParser, path: KeyPath, message: str) -> list[str]:
    """Names of the keys beside a refused one."""
    classes = CLASS.findall(message)
    inside = class_parser(classes[-1]) if classes else None
    if inside is not None:
        return [key.rpartition(".")[2] for key in inside.get_defaults().keys()]  # noqa: SIM118 (a Namespace)
    above = [str(part) for part in path[:-1]]
    known = [key.split(".") for key in parser.get_defaults().keys()]  # noqa: SIM118
    return sorted({key[len(above)] for key in known if key[: len(above)] == above and len(key) > len(above)})


def required_by(class_path: str) -> set[str]:
    """Names of the arguments without a default of a class; none where it cannot be found."""
    parser = class_parser(class_path)
    return set() if parser is None else {key.partition(".")[0] for key in parser.required_args}


@lru_cache(maxsize=64)
def class_parser(class_path: str) -> ArgumentParser | None:
    """A parser of the arguments of a class; None where there is no such class."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(import_object(class_path), fail_untyped=False, sub_configs=True)
    except ValueError:
        return None
    return parser


def _choices(kind: str) -> str:
    literal = LITERAL.fullmatch(kind)
    if literal:
        return "one of " + literal[1].replace("'", "")
    return kind.removeprefix("<class '").removesuffix("'>")
