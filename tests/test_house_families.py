"""What a family is stands in `emu.families` alone: no other room asks for one by its name."""

import ast
from pathlib import Path

import pytest

from emu.families import FAMILIES

ROOT = Path(__file__).parents[1] / "emu"
AT_HOME = {"families", "layouts"}
"""Rooms that name families and layouts."""

FILES = [file for file in sorted(ROOT.rglob("*.py")) if file.relative_to(ROOT).parts[0] not in AT_HOME]


def strings_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("name", ["emu3", "emu3.5"])
def test_no_other_file_holds_the_name_of_a_released_family(name):
    found = [str(file.relative_to(ROOT)) for file in FILES if name in strings_of(ast.parse(file.read_text()))]
    assert not found


def test_no_other_file_compares_with_the_name_of_a_family():
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare | ast.Match) and set(FAMILIES) & set(strings_of(node)):
                found.append(f"{file.relative_to(ROOT)}: line {node.lineno}")
    assert not found


def test_families_import_from_emu3_in_one_direction():
    for file in sorted((ROOT / "families" / "emu3").glob("*.py")):
        text = file.read_text()
        assert "families.emu35" not in text and "families.transformers_emu3" not in text, file.name
