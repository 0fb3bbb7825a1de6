"""Files and folders that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


def write_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; a file of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _flush(path.parent)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """`write_file` of a table as indented JSON."""
    write_file(path, (json.dumps(table, indent=2) + "\n").encode())


@contextmanager
def new_folder(path: Path, ours: Collection[str] = ("*",)) -> Iterator[Path]:
    """A temporary folder to fill, which takes the name `path` when the block ends well.

    Args:
        path: the name; what an earlier folder of that name holds is replaced where it is ours and kept where it is not.
        ours: patterns (as of `fnmatch`) of the names that such a folder holds; all of them by default.

    Raises:
        NotADirectoryError: there is a file of that name.
        ValueError: the name is the folder that we work in, or one around it.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; a folder of that name cannot be written")
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(
            f"{path} is the working folder or one around it; name a folder of its own, e.g. {path / 'new'}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.partial-", dir=path.parent))
    try:
        yield partial
        for file in (*partial.rglob("*"), partial):
            set_usual_mode(file)
            _flush(file)
        _take_name(partial, path, ours)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def set_usual_mode(path: Path) -> None:
    """Give a file or folder the mode that the process's umask asks for; safetensors writes files that only their owner reads."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _take_name(partial: Path, path: Path, ours: Collection[str]) -> None:
    if not path.exists():
        os.replace(partial, path)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f"{path.name}.replaced-", dir=path.parent))
    os.replace(path, replaced)
    os.replace(partial, path)
    for entry in list(replaced.iterdir()):
        if not any(fnmatch(entry.name, pattern) for pattern in ours) and not (path / entry.name).exists():
            os.replace(entry, path / entry.name)
    shutil.rmtree(replaced)


def _flush(path: Path) -> None:
    """Put what was written to a file or to the table of a folder on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
