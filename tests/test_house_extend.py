"""Eight kinds of things are added from one file: `tests/test_house_extend_<kind>.py` does it for each, end to end, and patches nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KINDS = ("callback", "command", "family", "layout", "modality", "objective", "quantizer", "suite")
FILES = {kind: HERE / f"test_house_extend_{kind}.py" for kind in KINDS}
BY_CLASS_PATH = {"callback", "objective"}


def test_each_kind_has_its_file_and_its_row_on_the_page():
    assert sorted(HERE.glob("test_house_extend_*.py")) == sorted(FILES.values())
    page = (HERE.parent / "docs" / "architecture.md").read_text()
    assert {kind for kind in KINDS if f"`tests/{FILES[kind].name}`" not in page} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_patched_and_what_was_registered_is_taken_out_again(kind):
    text = FILES[kind].read_text()
    called = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = [func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called]
    assert not {"setattr", "setitem", "patch", "MagicMock"} & set(names)
    assert ("unregister" in names and "register" in names) or kind in BY_CLASS_PATH
    assert re.search(r"^def test_", text, re.MULTILINE)
