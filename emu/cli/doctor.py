"""`emu doctor`: what this machine has, which kernels run on it and why, what is missing, and what would not work.

Include its output in bug reports. It reads what is installed without importing anything but torch, so it works in a broken environment too.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import emu
from emu.configuration.extensions import load_extensions

DISTRIBUTION = "emu-tokens"
GIB = 1024**3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if something would not work, else 0."""
    words = argparse.ArgumentParser(prog="emu doctor", description=(__doc__ or "").partition("\n\n")[0])
    words.parse_args(arguments)
    sections, problems = examine()
    for title, lines in sections.items():
        print(title)
        print("\n".join(f"  {line}" for line in lines))
    print("problems")
    print("\n".join(f"  {problem}" for problem in problems or ["none"]))
    return 1 if problems else 0


def examine() -> tuple[dict[str, list[str]], list[str]]:
    """Sections of the report, title -> lines, and problems."""
    own, extras = requirements()
    torch, problems = _import_torch()
    problems += check_python() + check_versions(own, extras)
    extensions, broken = _load_extensions()
    problems += broken
    sections = {
        "versions": _columns([("emu", f"{emu.__version__} ({Path(emu.__file__).parent})"), *_versions(own, torch)]),
        "machine": _columns(_machine(torch)),
        "devices": _columns(_devices(torch)),
        "kernels": _columns(_kernels(torch)),
        "extras": _columns([*_extras(extras), ("extensions", extensions)]),
    }
    if torch is not None and not torch.cuda.is_available() and _driver_sees_a_gpu():
        problems.append(_unseen_gpu(torch))
    return sections, problems


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What the package needs on this machine, and what each extra adds; both empty where it is not installed as a distribution."""
    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [], {}
    given = [Requirement(line) for line in found.requires or []]
    own = [one for one in given if one.marker is None or one.marker.evaluate({"extra": ""})]
    extras = {
        extra: [
            one for one in given if one not in own and one.marker is not None and one.marker.evaluate({"extra": extra})
        ]
        for extra in found.metadata.get_all("Provides-Extra") or []
    }
    ours = canonicalize_name(DISTRIBUTION)
    return own, {name: [one for one in added if canonicalize_name(one.name) != ours] for name, added in extras.items()}


def check_python() -> list[str]:
    """Problems with the interpreter."""
    try:
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [
            f"{DISTRIBUTION} is not installed, so that versions cannot be compared; run pip install . in its folder"
        ]
    version = platform.python_version()
    return (
        []
        if version in SpecifierSet(wanted)
        else [f"Python {version} is outside {wanted}; make an environment with another"]
    )


def check_versions(own: Iterable[Requirement], extras: dict[str, list[Requirement]]) -> list[str]:
    """What is missing, or outside the range that this package or another one of its dependencies gives."""
    problems = []
    for one in own:
        problems += [told for told in [_mismatch(one, "emu")] if told]
        if _version(one.name) is not None:
            theirs = (Requirement(line) for line in metadata.requires(one.name) or [])
            needed = (need for need in theirs if need.marker is None or need.marker.evaluate({"extra": ""}))
            problems += [told for need in needed for told in [_mismatch(need, one.name)] if told]
    optional = {str(one): one for added in extras.values() for one in added if _version(one.name) is not None}
    problems += [told for one in optional.values() for told in [_mismatch(one, "emu")] if told]
    return list(dict.fromkeys(problems))


def _mismatch(requirement: Requirement, whose: str) -> str | None:
    """What is wrong with an installed version, in one line with the command that mends it."""
    version, wanted = _version(requirement.name), requirement.specifier
    if version is not None and wanted.contains(version, prereleases=True):
        return None
    found = f"{requirement.name} is missing" if version is None else f"{requirement.name} is {version}"
    range_ = f"{wanted}" if wanted else "it"
    return f"{found}, {whose} needs {range_}: pip install '{requirement.name}{wanted}'"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions(own: Iterable[Requirement], torch: Any) -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for one in own:
        known = _version(one.name) or "missing"
        found = torch.__version__ if one.name == "torch" and torch is not None else known  # with the build, e.g. +cpu
        yield one.name, f"{found:<12}  {one.specifier}"


def _import_torch() -> tuple[Any, list[str]]:
    """torch and no problem, or None and why it cannot be imported."""
    try:
        import torch
    except Exception as error:  # a broken build raises anything: OSError of a library, ImportError, RuntimeError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, [f"torch cannot be imported ({lines[-1]}); install it again: pip install --force-reinstall torch"]
    return torch, []


def _load_extensions() -> tuple[str, list[str]]:
    """Names of the extensions of installed packages, and what is wrong with one that cannot be loaded."""
    try:
        return ", ".join(load_extensions()) or "none", []
    except ValueError as error:
        return "not loaded", [str(error)]


def _machine(torch: Any) -> Iterator[tuple[str, str]]:
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "memory", _memory()
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / GIB:.1f} GiB free in {Path.cwd()}"
    given = ", ".join(f"{name} {os.environ.get(name, 'not set')}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"))
    used = "" if torch is None else f"{torch.get_num_threads()} of torch on "
    yield "threads", f"{used}{os.cpu_count()} cores; {given}"


def _memory() -> str:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return "not known on this system"
    table = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    free, total = (int(table[name].split()[0]) / 1024**2 for name in ("MemAvailable", "MemTotal"))
    return f"{free:.1f} GiB free of {total:.1f}"


def _devices(torch: Any) -> Iterator[tuple[str, str]]:
    if torch is None:
        yield "not known", "torch cannot be imported"
        return
    yield "cpu", f"{torch.backends.cpu.get_cpu_capability()}"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}, {memory}"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"


def _kernels(torch: Any) -> Iterator[tuple[str, str]]:
    """Path of each op on each device; ops with the same path and reason share a line."""
    if torch is None:
        yield "not known", "torch cannot be imported"
        return
    from emu_kernels import choices

    for name in ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]:
        grouped: dict[tuple[str, str], list[str]] = {}
        for op, choice in choices(torch.device(name)).items():
            grouped.setdefault(choice, []).append(op)
        for (path, reason), ops in grouped.items():
            yield name, f"{path} for {', '.join(ops)}: {reason}"


def _extras(extras: dict[str, list[Requirement]]) -> Iterator[tuple[str, str]]:
    for extra, added in extras.items():
        missing = [one for one in added if _version(one.name) is None]
        words = " ".join(f"'{one.name}{one.specifier}'" for one in missing)
        if added:
            yield (
                extra,
                f"missing {', '.join(one.name for one in missing)}: pip install {words}" if missing else "installed",
            )


def _driver_sees_a_gpu() -> bool:
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.returncode == 0 and "GPU" in told.stdout


def _unseen_gpu(torch: Any) -> str:
    built = "was built without CUDA" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda}"
    return f"the NVIDIA driver sees a GPU; torch {torch.__version__} {built} and sees none: install a build of torch for that driver"


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    found = list(rows)
    width = max((len(name) for name, _ in found), default=0)
    return [f"{name:<{width}}  {text}".rstrip() for name, text in found]
