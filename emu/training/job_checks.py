"""What can be said of a job before it runs: classes and the arguments they take, and what differs from the job of a folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from emu.configuration import import_object
from emu.configuration.problems import Problem
from emu.training.stages import STAGES, JobStage

SHOWN = ("trainer.enable_progress_bar",)
"""Options that change nothing of what is made."""


def stage_class(command: str) -> type[JobStage]:
    """The class of a stage; raises ValueError where there is none."""
    return import_object(command) if "." in command else STAGES.find(command)


def class_problems(table: Any, what: str, command: str | None = None) -> list[Problem]:
    """What keeps a class from being made of its arguments."""
    if not isinstance(table, dict) or not isinstance(table.get("class_path"), str):
        return [Problem(f"{what} is {table!r}; expected class_path and init_args", (what,))]
    name, given = command or table["class_path"], dict(table.get("init_args") or {})
    try:
        found = import_object(name) if command is None else stage_class(name)
    except ValueError as error:
        return [Problem(str(error), (what,))]
    known = inspect.signature(found).parameters
    problems = [
        Problem(f"{key} is not an option of {name}; it has {', '.join(known)}", (key,))
        for key in given
        if key not in known
    ]
    required = [key for key, one in known.items() if one.default is one.empty and key not in given]
    problems += [Problem(f"{key} is missing; {name} needs it", (key,)) for key in required]
    if not problems:
        try:
            found(**given)
        except (ValueError, TypeError, FileNotFoundError) as error:
            problems.append(Problem(f"{name}: {error}", (what,)))
    return problems


def changed(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> list[Problem]:
    """A problem for each value that differs."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        Problem(
            f"{key} is {new.get(key, 'not set')} and was {old.get(key, 'not set')} in {what}; set it back, name another folder with "
            "--trainer.default_root_dir, or start anew with --overwrite true",
            (),
        )
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not key.endswith(SHOWN)
    ]


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{path}.{name}".removeprefix(".").removeprefix("options.")
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def one_process_problems(trainer: Mapping[str, Any]) -> list[Problem]:
    """A problem for each setting of a trainer that asks for several processes."""
    found = []
    for key, most in (("devices", (None, 0, 1, "1", "auto")), ("num_nodes", (None, 1, "1"))):
        value = trainer.get(key)
        if value not in most and not (isinstance(value, list) and len(value) == 1):
            text = f"trainer.{key} is {value}; a job runs in one process, set it to 1 or train this stage on its own"
            found.append(Problem(text, ("trainer", key)))
    return found
