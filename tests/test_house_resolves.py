"""What pip makes of our requirements on the machines of others: dry runs against the public package index, and nothing else.

pip judges `platform_system == "Linux"` and the like by the machine it runs on, whatever `--platform` says, so it is told of another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MANYLINUX = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
MANYLINUX += [f"manylinux{year}_x86_64" for year in (2014, 2010, 1)]
SYSTEMS = {
    "Linux": ("linux", "posix", "x86_64", MANYLINUX),
    "Windows": ("win32", "nt", "AMD64", ["win_amd64"]),
    "Darwin": ("darwin", "posix", "arm64", [f"macosx_{major}_0_arm64" for major in range(14, 10, -1)]),
}
"""platform_system -> sys_platform, os_name, platform_machine and the tags of wheels, the preferred first."""
EXTRAS = ("dev", "demo", "video", "gpu", "lora", "quantized", "ray", "serve", "docs")
PIP = """
import json, sys
from pip._vendor.packaging import markers
here = markers.default_environment
markers.default_environment = lambda: {**here(), **json.loads(sys.argv[1])}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
MINUTES = 10
pytestmark = pytest.mark.slow


def pip(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """pip as it comes: no folder of wheels, no second index, no settings of this machine."""
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    dropped = {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX"}
    plain = {name: value for name, value in os.environ.items() if name not in dropped} | settings
    command = [sys.executable, "-c", PIP, json.dumps(environment or {}), *words]
    return subprocess.run(command, capture_output=True, text=True, env=plain, timeout=60 * MINUTES)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Skips where the package index cannot be reached."""
    target = str(tmp_path_factory.mktemp("probe"))
    probe = pip("download", "-q", "--no-deps", "--retries", "0", "--timeout", "15", "--dest", target, "iniconfig")
    if probe.returncode:
        pytest.skip("the package index cannot be reached")


def resolved(requirement: str, system: str, python: str, target: Path, *words: str) -> dict[str, str]:
    """Name -> version of everything that pip would install there, from wheels alone."""
    sys_platform, os_name, machine, tags = SYSTEMS[system]
    environment = {"platform_system": system, "sys_platform": sys_platform, "os_name": os_name}
    environment |= {"platform_machine": machine, "python_version": python, "python_full_version": f"{python}.0"}
    command = ["install", "--dry-run", "-q", "--report", str(target / "report.json"), "--target", str(target / "site")]
    command += ["--python-version", python, "--only-binary=:all:", *words]
    command += [word for tag in tags for word in ("--platform", tag)]
    result = pip(*command, requirement, environment=environment)
    assert result.returncode == 0, f"{system}, Python {python}:\n{result.stderr}"
    report = json.loads((target / "report.json").read_text())
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}


def pins(python: str) -> dict[str, str]:
    """Name -> version of constraints.txt on a Python."""
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    requirements = [Requirement(line) for line in lines]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    return {
        requirement.name.lower(): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(here)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_what_make_installs_resolves_on_linux_with_every_extra(python, index, wheel, tmp_path):
    requirement = f"emu-tokens[{','.join(EXTRAS)}] @ {wheel.as_uri()}"
    found = resolved(requirement, "Linux", python, tmp_path, "-c", str(ROOT / "constraints.txt"))
    expected = pins(python)
    assert {"torch", "triton", "transformers", "pytest", "peft", "torchao", "av"} <= set(found)
    ours = {name: version for name, version in found.items() if name in expected}
    assert ours == {name: expected[name] for name in ours}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_the_wheel_resolves_elsewhere_without_triton(system, python, index, wheel, tmp_path):
    found = resolved(str(wheel), system, python, tmp_path)
    assert {"torch", "transformers", "lightning"} <= set(found) and "triton" not in found
