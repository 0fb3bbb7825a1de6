"""Everything wrong with a configuration in one message, each with the place that says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from emu.configuration.written import KeyPath, Written, dotted

NAMES = re.compile(r"[A-Za-z_][\w.]*")
PARTS = ("", "model.", "model.config.", "data.", "trainer.", "checkpoint.")
"""Where a name in a sentence may be at home, in the order in which it is looked for."""


class Problem(NamedTuple):
    """What is wrong, in a sentence.

    Attributes:
        text: the sentence.
        path: of the key that it is about; () for none. None, or the key of a whole part such as ("model",), where it is looked for in
            the sentence.
    """

    text: str
    path: KeyPath | None = None


def raise_problems(problems: Iterable[Problem | str], written: Written | None = None) -> None:
    """Raise a ValueError that lists them, each once, with the file and line of the key where it is written.

    Raises:
        ValueError: there are any.
    """
    lines: dict[str, None] = {}
    for problem in problems:
        problem = Problem(problem) if isinstance(problem, str) else problem
        lines[_line(problem, written)] = None
    if lines:
        raise ValueError("this configuration cannot work:" + "".join(f"\n  - {line}" for line in lines))


def _line(problem: Problem, written: Written | None) -> str:
    if written is None:
        return problem.text
    path = problem.path
    if path is None or len(path) == 1:
        parts = PARTS if path is None else [part for part in PARTS if part.startswith(f"{path[0]}.")]
        path = find_key(problem.text, written, parts) or path or ()
    place, text = written.place(path), problem.text
    if path and dotted(path) not in text and dotted(path).replace(".init_args", "") not in text:
        own_name = next((n for n in range(1, len(path)) if text.startswith(f"{dotted(path[n:])} ")), None)
        text = f"{dotted(path)}: {text}" if own_name is None else f"{dotted(path[:own_name])}.{text}"
    return text if place is None else f"{place}: {text}"


def find_key(text: str, written: Written, parts: Sequence[str]) -> KeyPath:
    """The first name in a sentence that is a key of what was written, in one of these parts; () where there is none.

    Names may leave `init_args` out, as on the command line.
    """
    known = {dotted(path).replace(".init_args", ""): path for path in written.places if len(path) > 1}
    for name in NAMES.findall(text):
        for part in parts:
            if part + name.strip(".") in known:
                return known[part + name.strip(".")]
    return ()
