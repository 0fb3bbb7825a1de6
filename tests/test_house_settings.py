"""Metadata and settings that must agree with each other."""

import re
import sys
from pathlib import Path

import pytest

import emu

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LONGEST_FILE = 500


def normalised(requirement: str) -> str:
    """Name of a requirement as package indexes compare names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_tells_its_version():
    assert emu.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalised(line) for line in lines if line and not line.startswith("#")}
    extras = PROJECT["optional-dependencies"]
    wanted = {
        normalised(name) for name in [*PROJECT["dependencies"], *extras["dev"], *extras["demo"], *extras["video"]]
    }
    # What installs packages is not pinned: pip brings it.
    assert wanted - pinned <= {PROJECT["name"], "setuptools", "wheel"}


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
def test_no_file_is_too_long_to_read(folder):
    long = {file.name: len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}
