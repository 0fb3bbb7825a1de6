"""Pictures with captions in every form that sources read, and folders of shards compared byte by byte."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ("a red circle", "a ball", "a ball rolling left")


def scene(number: int, height: int = 8, width: int = 8) -> Image.Image:
    """A picture of noise; the same one for equal numbers."""
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(number: int, height: int = 8, width: int = 8) -> bytes:
    """The file of a scene."""
    written = io.BytesIO()
    scene(number, height, width).save(written, "png")
    return written.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """An uncompressed tar file of these members, in order."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but locks, by name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".emu.lock" not in file.name and ".ranks" not in file.parts
    }


def environment(**more: str) -> dict[str, str]:
    """That of a child process: this checkout, one thread."""
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(str(root / part) for part in ("", "tokenizers", "kernels"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants (Linux)."""
    found = [pid]
    for one in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def proportional_memory(pids: list[int]) -> int:
    """Bytes that processes hold together, shared pages counted once (PSS)."""
    total = 0
    for pid in pids:
        try:
            line = next(
                line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line[:4] == "Pss:"
            )
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue
        total += int(line.split()[1]) << 10
    return total
