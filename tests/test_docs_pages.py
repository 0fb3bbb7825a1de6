"""Pages of docs/ and of the root agree with the repository: files, tests and rooms that they name exist."""

from __future__ import annotations

import importlib.util
import re

import pytest
import yaml

import emu
from tests.page_blocks import PAGES, ROOT, section

NAMED = re.compile(
    r"`((?:emu|tokenizers|kernels|recipes|tests|benchmarks|docs)/[\w./-]*)(?:::(\w+))?`"
)  # `emu/packing.py`, `emu/data/`, `tests/test_x.py::test_y`
PATHS = sorted({(page, path, test) for page in PAGES for path, test in NAMED.findall(page.read_text())})


def test_pages_name_many_files():
    assert len(PATHS) > 80


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_and_tests_that_a_page_names_exist(page):
    wrong = []
    for other, path, test in PATHS:
        if other != page:
            continue
        file = ROOT / path
        if not file.exists():
            wrong.append(path)
        elif test and f"\ndef {test}(" not in file.read_text():
            wrong.append(f"{path}::{test}")
    assert not wrong, f"{page.relative_to(ROOT)} names {wrong}"


def test_the_table_of_rooms_has_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = section(ROOT / "docs" / "architecture.md", "Rooms")
    floors = re.search(r"^```floors\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1].split()
    missing = [room for room in floors if f"`emu/{room}/`" not in rooms and f"`emu/{room}.py`" not in rooms]
    assert not missing, f"not in a table of docs/architecture.md: {missing}"


def test_the_picture_shows_the_floors_of_the_page():
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert (ROOT / "docs" / "house.svg").read_text() == drawing.house(), "run python docs/draw_house.py"


def test_where_things_are_fits_a_screen():
    lines = re.search(r"```\n(.*?)```", section(ROOT / "README.md", "Where things are"), re.DOTALL)[1].splitlines()
    assert len(lines) <= 25
    missing = [line.split()[0] for line in lines if not (ROOT / line.split()[0]).exists()]
    assert not missing, f"README.md, Where things are: {missing}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == emu.__version__ and citation["license"] == "Apache-2.0"
