"""Files and folders that appear under their name only when they are complete, the order of names, and folders that one process holds."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""What the temporary names of unfinished files end in."""
LOCK_FILE = ".emu.lock"
"""The file in an output folder whose lock says that a process works there; it stays, the lock goes with its process."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path`, on the disk, when the block ends well, and goes when it does not.

    The temporary name is a random one beside the process's number, which processes of other machines and containers may have too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        name_failed_write(error, path)
        raise
    _flush(path.parent)


def name_failed_write(error: BaseException, path: Path) -> None:
    """Let the error of a write that failed say which file it was, as an OSError: that of a full disk does not name the file.

    Libraries in Rust report the system's error as text alone.

    Raises:
        OSError: in the place of such an error.
    """
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            error.filename = str(path)
    elif (said := _SYSTEM_ERROR.search(str(error))) and isinstance(error, Exception):
        number = int(said.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error


_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; a file of that name is replaced."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """`write_file` of a table as indented JSON."""
    write_file(path, (json.dumps(table, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object in UTF-8; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError and a JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is damaged, it is not JSON ({error}); copy or save it again") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds {type(table).__name__}; expected a JSON object")
    return table


def natural_key(path: str | os.PathLike) -> tuple[Any, ...]:
    """A sorting key in which numbers count as numbers: frame_2.png comes before frame_10.png.

    Digits are compared by value, the rest without regard to case, folder by folder; names that tie are ordered by their characters.
    """
    parts = Path(path).parts
    # Text and digits alternate in what re.split returns, starting with text, so equal places hold equal types.
    pieces = tuple(tuple(_pieces(part)) for part in parts)
    return (pieces, parts)


def _pieces(name: str) -> Iterator[str | int]:
    for number, piece in enumerate(re.split(r"([0-9]+)", name)):
        yield int(piece) if number % 2 else piece.casefold()


class FolderInUse(ValueError):
    """Another process writes into this folder."""


@contextmanager
def holding(folder: Path, work: str) -> Iterator[None]:
    """Hold an output folder, so that no second process writes into it meanwhile.

    The lock belongs to the process: the system drops it however the process ends, kill -9 included, and forked children do not keep it.

    Args:
        folder: made when it is not there.
        work: what is done in it, for the other's message: "emu tokenize".

    Raises:
        FolderInUse: another process, which the message names, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK_FILE).resolve()
    if file in _HELD:  # a process's own lock would not keep it out
        raise FolderInUse(f"{folder} is in use by this process ({_HELD[file]}); give each run a folder of its own")
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(handle):
            raise FolderInUse(
                f"{folder} is in use by {_holder(handle)}; wait until it ends, stop it, or name another folder"
            )
        os.ftruncate(handle, 0)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "work": work, "since": time.strftime("%F %T")}
        os.write(handle, json.dumps(about).encode())
        _HELD[file] = work
        try:
            yield
        finally:
            del _HELD[file]
    finally:
        os.close(handle)


_HELD: dict[Path, str] = {}
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks says to whoever asks for one."""


def _lock(handle: int) -> bool:
    """Whether this process has the lock of an open file now."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Shared folders of some clusters have no locks, and every file in them is written under another name and renamed.
        return error.errno in NO_LOCKS
    return True


def _holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        about = json.loads(os.read(handle, 4096))
        return f"process {about['pid']} on {about['host']} ({about['work']}, since {about['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def holds_others(folder: Path, marks: Collection[str]) -> bool:
    """Whether a folder has contents, and none of the files that mark it as one of ours: to replace it would remove those."""
    return folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in marks)


@contextmanager
def new_folder(path: Path, ours: Collection[str] = ("*",)) -> Iterator[Path]:
    """A temporary folder to fill, which takes the name `path` when the block ends well.

    Args:
        path: the name; what an earlier folder of that name holds is replaced where it is ours and kept where it is not. Of a link the
            folder that it leads to.
        ours: patterns (as of `fnmatch`) of the names that such a folder holds; all of them by default.

    Raises:
        NotADirectoryError: there is a file of that name.
        ValueError: the name is the folder that we work in, or one around it.
    """
    path = path.resolve() if path.is_symlink() else path.absolute()
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
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        name_failed_write(error, path)
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
