"""Names of the house: every file says what it is."""

from __future__ import annotations

import ast

from tests.house import modules, tree_of, where


def test_every_file_begins_with_what_it_is():
    wrong = [where(file) for file in modules().values() if not ast.get_docstring(tree_of(file))]
    assert not wrong, f"no docstring: {wrong}"
