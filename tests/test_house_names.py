"""Names of the house: a class and a file are called as nothing else is, so that a name leads to one place."""

from __future__ import annotations

import ast
from collections import defaultdict
from fnmatch import fnmatch

from emu.cli.commands import COMMANDS
from tests.house import modules, tree_of, where

COMMAND_FILES = {command.function.partition(":")[0].rpartition(".")[2] for command in COMMANDS.values()}
PROTOCOLS = [
    ("*/__init__.py", "Python's name of a package"),
    ("*/base.py", "what the objects of a room's table have in common"),
    *((f"kernels/emu_kernels/*/{stem}.py", "an op is a folder of the same files") for stem in ("op", "cpu", "gpu")),
    ("emu/families/*/*.py", "a family is a folder of the same files"),
    ("emu/evaluation/suites/*.py", "a suite is called as what it measures"),
    *((f"emu/cli/{stem}.py", "a command's file is called as the command") for stem in sorted(COMMAND_FILES)),
]
"""Files whose name says which part they are of something that has siblings, and why."""
READ_AT_ONCE = {"emu/model_config.py", "tokenizers/emu_tokenizers/vision/config.py"}


def twice(places: dict[str, list[str]]) -> str:
    return "\n".join(f"{name}: {', '.join(files)}" for name, files in sorted(places.items()) if len(files) > 1)


def test_no_class_name_occurs_twice():
    places = defaultdict(list)
    for file in modules().values():
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(where(file))
    assert not twice(places), twice(places)


def test_no_file_name_occurs_twice():
    places = defaultdict(list)
    for file in modules().values():
        if not any(fnmatch(where(file), pattern) for pattern, _ in PROTOCOLS):
            places[file.stem].append(where(file))
    assert not twice(places), twice(places)


def test_every_file_begins_with_what_it_is():
    wrong = [where(file) for file in modules().values() if not ast.get_docstring(tree_of(file))]
    assert not wrong, f"no docstring: {wrong}"


def test_every_file_reads_annotations_late():
    """`from __future__ import annotations`, but where `huggingface_hub.dataclasses.strict` checks values against types that it reads."""
    wrong = []
    for file in modules().values():
        lines = [
            node for node in tree_of(file).body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        ]
        holds_code = any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for node in tree_of(file).body
        )
        if holds_code and not lines and where(file) not in READ_AT_ONCE:
            wrong.append(where(file))
    assert not wrong, f"no `from __future__ import annotations`: {wrong}"
