"""Inside emu_tokenizers imports point down, and no file needs itself through others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import emu_tokenizers

PACKAGE = Path(emu_tokenizers.__file__).parent
FLOORS = [{"pixels", "quantizers"}, {"vision"}, {"training"}]
"""Rooms from the lower to the upper; the files beside them are below all."""


def module_name(file: Path) -> str:
    parts = ("emu_tokenizers", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imports_of(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, for types alone and inside functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def room_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(module: str) -> int:
    return next((level for level, rooms in enumerate(FLOORS, 1) if room_of(module) in rooms), 0)


def test_no_imports_go_in_a_circle():
    graph = {module: set(imports_of(file)) for module, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_rooms_import_only_downwards():
    for module, file in MODULES.items():
        if module == "emu_tokenizers":  # its exports come from all floors
            continue
        for other in imports_of(file):
            below = floor_of(other) < floor_of(module) or floor_of(other) == 0
            assert below or room_of(other) == room_of(module), f"{module} imports {other}"
