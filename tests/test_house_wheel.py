"""What the wheel carries."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def sources(pattern: str, folder: Path, prefix: str) -> set[str]:
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob(pattern) if path.is_file()}


def test_wheel_holds_our_three_packages_and_nothing_else(names):
    assert {name.split("/")[0] for name in names} == {
        "emu",
        "emu_kernels",
        "emu_tokenizers",
        "emu_tokens-0.1.0.dist-info",
    }


def test_wheel_holds_every_module(names):
    expected = sources("*.py", ROOT / "emu", "emu")
    expected |= sources("*.py", ROOT / "tokenizers" / "emu_tokenizers", "emu_tokenizers")
    expected |= sources("*.py", ROOT / "kernels" / "emu_kernels", "emu_kernels")
    assert expected <= names, f"missing (an __init__.py is lacking?): {sorted(expected - names)}"
    assert {"emu/py.typed", "emu_kernels/py.typed", "emu_tokenizers/py.typed"} <= names


def test_wheel_holds_the_recipes(names):
    recipes = {f"emu/recipes/{path.name}" for path in (ROOT / "recipes").iterdir() if path.is_file()}
    assert recipes and recipes <= names


def test_wheel_holds_every_data_file(names):
    expected = {
        name
        for package, folder in (("emu", ROOT / "emu"), ("emu_tokenizers", ROOT / "tokenizers" / "emu_tokenizers"))
        for name in sources("*", folder, package)
        if "__pycache__" not in name
    }
    assert expected <= names, f"not in pyproject's package-data: {sorted(expected - names)}"


def test_wheel_carries_no_build_leftovers(names):
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".partial", ".orig"))]
