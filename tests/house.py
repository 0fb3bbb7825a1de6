"""The house as tests read it: its files, what they import, and which file a dotted name leads to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import emu
import emu.data
import emu_tokenizers

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "emu_kernels": ROOT / "kernels" / "emu_kernels",
    "emu_tokenizers": ROOT / "tokenizers" / "emu_tokenizers",
    "emu": ROOT / "emu",
}
PAGE = ROOT / "docs" / "architecture.md"
FLOORS = [
    line.split()  # an indented line continues the one above
    for line in re.split(
        r"\n(?! )", re.search(r"^```floors\n(.*?)\n```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    )
]
"""Rooms of `emu` from the ground up: a room imports from floors below its own; rooms of the ground import one another too."""
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LAZY = {"emu": emu._HOME_OF, "emu.data": emu.data._HOME_OF, "emu_tokenizers": emu_tokenizers._HOME_OF}
"""Package whose exports are loaded when they are asked for -> the home of each."""


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def where(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module and package of the house."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file: modules, and names in them."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{where(file)}: line {node.lineno} imports relatively; write the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home_of(dotted: str) -> str | None:
    """The module in which a dotted name lives, lazy exports followed; None outside of the house."""
    package, _, name = dotted.rpartition(".")
    if name in LAZY.get(package, {}):
        return home_of(LAZY[package][name])
    while dotted and dotted not in modules():
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def imported_modules(name: str) -> set[str]:
    """Modules of the house that a module imports; a package is one of them only where something is taken from its `__init__`."""
    file = modules()[name]
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {home_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {home_of(f"{node.module}.{alias.name}") for alias in node.names}
    return {one for one in found if one is not None} - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes from each of which one comes back to it (strongly connected components of more than one node)."""

    def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in edges.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    backwards: dict[str, set[str]] = {}
    for node, others in graph.items():
        for other in others:
            backwards.setdefault(other, set()).add(node)
    groups = {frozenset(reached(node, graph) & reached(node, backwards)) for node in graph}
    return sorted(sorted(group) for group in groups if group)
