"""Public names: each on the page can be imported and says what it is, and none leaves without having warned for one minor version."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import emu
import emu_kernels
from emu.cli.main import available

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "names.md").read_text()
RELEASED = ROOT / "tests" / "data" / "public-names"
"""One file for each released minor version, `0.1.txt`: the lines of the page's blocks as they were in it."""


class PublicName(NamedTuple):
    """A line of the page.

    Attributes:
        since: the minor version in which the name appeared, (major, minor).
        deprecated: the one in which it began to warn, or None.
    """

    since: tuple[int, ...]
    deprecated: tuple[int, ...] | None


def minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def read_names(text: str) -> dict[str, PublicName]:
    """Lines "emu.Emu 0.1" and "emu.Old 0.1 deprecated 0.2"."""
    found = {}
    for name, since, deprecated in re.findall(
        r"^([\w.]+) +(\d+\.\d+)(?: +deprecated (\d+\.\d+))?$", text, re.MULTILINE
    ):
        found[name] = PublicName(minor(since), minor(deprecated) if deprecated else None)
    return found


def blocks(kind: str) -> Iterator[str]:
    return iter(re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


NAMES = read_names("".join(blocks("names")))


def find(name: str) -> Any:
    """The object of a dotted name: the longest part of it that is a module, and attributes of that."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} is not there")


def left_too_early(now: dict[str, PublicName], released: dict[tuple[int, ...], dict[str, PublicName]]) -> list[str]:
    """Names that the last released minor version had without a warning, and that are gone."""
    if not released:
        return []
    last = released[max(released)]
    return [name for name, entry in last.items() if name not in now and entry.deprecated is None]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_can_be_imported_and_says_what_it_is(name):
    found = find(name)
    if not isinstance(found, property):
        assert callable(found)
    assert inspect.getdoc(found), f"{name} has no docstring"


def test_every_line_of_the_page_is_read():
    lines = [line for block in blocks("names") for line in block.splitlines()]
    assert len(lines) == len(NAMES) > 40


def test_what_the_packages_export_is_public():
    exported = {f"emu.{name}" for name in emu.__all__}
    exported |= {f"emu.kernels.{name}" for name in emu_kernels.__all__}
    assert exported <= set(NAMES), f"not on the page: {sorted(exported - set(NAMES))}"


def test_commands_of_the_page_are_those_of_emu():
    listed = "".join(blocks("commands")).split()
    assert sorted(listed) == sorted(set(available()) - {"fit-lora"})


def test_names_that_are_on_their_way_out_warn():
    for name, entry in NAMES.items():
        if entry.deprecated is None:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = find(name)
        warned = any(issubclass(one.category, DeprecationWarning) for one in caught)
        assert warned or hasattr(found, "__deprecated__"), f"{name} gives no DeprecationWarning"
        assert entry.deprecated > entry.since


def test_no_name_leaves_before_it_has_warned_for_a_minor_version():
    released = {minor(path.stem): read_names(path.read_text()) for path in RELEASED.glob("*.txt")}
    assert not left_too_early(NAMES, released)
    ahead = [name for name, entry in NAMES.items() if entry.since > minor(emu.__version__)]
    assert not ahead, f"of a version that is not there yet: {ahead}"


def test_the_rule_tells_a_name_that_warned_from_one_that_did_not():
    first = read_names("emu.Old 0.1\nemu.New 0.1\n")
    second = read_names("emu.Old 0.1 deprecated 0.2\nemu.New 0.1\n")
    gone = read_names("emu.New 0.1\n")
    assert left_too_early(gone, {(0, 1): first}) == ["emu.Old"]
    assert left_too_early(gone, {(0, 1): first, (0, 2): second}) == []
    assert left_too_early(second, {(0, 1): first}) == []


def test_everything_in_the_reference_can_be_imported():
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    named = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)]
    assert len(named) > 80
    for name in named:
        find(name)
