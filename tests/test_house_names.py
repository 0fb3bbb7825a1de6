"""Names of the house: every file says what it is, and nobody asks for the name of a family."""

from __future__ import annotations

import ast

from emu.families import FAMILIES
from tests.house import modules, tree_of, where


def test_every_file_begins_with_what_it_is():
    wrong = [where(file) for file in modules().values() if not ast.get_docstring(tree_of(file))]
    assert not wrong, f"no docstring: {wrong}"


def test_nothing_outside_of_a_family_asks_for_its_name():
    """Who needs what differs between families asks the `Family`; layouts are named after them."""
    wrong = []
    for name, file in modules().items():
        if not name.startswith("emu.") or name.startswith(("emu.families", "emu.layouts")):
            continue
        for node in ast.walk(tree_of(file)):
            constants = ast.walk(node) if isinstance(node, ast.Compare) else ()
            if any(isinstance(one, ast.Constant) and one.value in list(FAMILIES) for one in constants):
                wrong.append(f"{where(file)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)
