"""Metadata and settings that must agree with each other."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import emu

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LONGEST_FILE = 500


def normalised(requirement: str) -> str:
    """Name of a requirement as package indexes compare names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_tells_its_version():
    assert emu.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once_for_each_python(python):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = [Requirement(line) for line in lines]
    pinned = [normalised(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
    assert len(pinned) == len(set(pinned)) and all(str(pin.specifier).startswith("==") for pin in pins)
    extras = PROJECT["optional-dependencies"].values()
    wanted = {normalised(name) for name in [*PROJECT["dependencies"], *(name for extra in extras for name in extra)]}
    # What installs packages is not pinned: pip brings it.
    assert wanted - set(pinned) <= {PROJECT["name"], "setuptools", "wheel"}


def test_dependencies_are_what_the_packages_import():
    wanted = {normalised(name) for name in PROJECT["dependencies"]}
    imported = set()
    for folder in ("emu", "tokenizers/emu_tokenizers", "kernels/emu_kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            imported |= set(re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
    names = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}
    ours = {"emu", "emu_tokenizers", "emu_kernels"}
    standard = sys.stdlib_module_names
    outside = {normalised(names.get(name, name)) for name in imported - ours - set(standard)}
    optional = {normalised(name) for extra in PROJECT["optional-dependencies"].values() for name in extra}
    assert outside <= wanted | optional, f"not in pyproject's dependencies: {sorted(outside - wanted - optional)}"


@pytest.mark.parametrize("folder", ["emu", "tokenizers/emu_tokenizers", "kernels/emu_kernels"])
def test_modules_log_to_the_one_logger_of_the_library(folder):
    names = {
        file.name: name
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^\w+ = logging\.getLogger\((.*)\)$", file.read_text(), re.MULTILINE)
    }
    named = r'"emu(\.\w+)*"|__name__' if folder == "emu" else r'"emu(\.\w+)*"'
    assert not {file: name for file, name in names.items() if not re.fullmatch(named, name)}


@pytest.mark.parametrize("folder", ["emu", "tokenizers/emu_tokenizers", "kernels/emu_kernels"])
def test_no_file_is_too_long_to_read(folder):
    long = {file.name: len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}
