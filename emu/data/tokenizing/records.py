"""What a source of raw documents is: records in order, each with a name, a state and what it says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from emu.lines import LineProblem, Place, message_of, reason_of


@dataclass(frozen=True)
class Record:
    """One raw document, cheap to make and to send to another process.

    Attributes:
        place: where it stands; its text is the record's stable name.
        content: what its source reads it from: the bytes of a line, names of files, the number of a row.
        size: bytes that `content` holds in memory where they are many.
    """

    place: Place
    content: Any
    size: int = 0

    @property
    def key(self) -> str:
        """The name that stays the same from run to run."""
        return str(self.place)


class RecordSource(Protocol):
    """Raw documents in a fixed order. Sources are pickled to worker processes, which call `read` alone.

    Attributes:
        name: what the user calls it.
        folder: where names of files in its documents start from.
    """

    name: str
    folder: Path

    @property
    def length(self) -> int | None:
        """About how many records there are, None where nobody knows before the end."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when what is read changes, as far as that is seen without reading it."""
        ...

    def records(self) -> Iterator[Record]:
        """The records in order, the same ones each time that it is called.

        Raises:
            FileNotFoundError, ValueError: what is read is not there, or is not what it should be.
        """
        ...

    def state(self, record: Record) -> bytes:
        """Bytes that change whenever what a record says, or a file that it names, does; raises nothing for bad records."""
        ...

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document as a table {"items": [...]} or {"messages": [...]}, in which pictures and clips may be bytes too.

        Raises:
            Exception: of any kind, where the record is bad.
        """
        ...


def digest(*parts: object) -> str:
    """64 hexadecimal digits that tell apart what `repr` tells apart."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()


def problem_at(place: Place, error: Exception) -> LineProblem:
    """An error as the problem of a place."""
    return LineProblem(place, reason_of(error), message_of(error))


def state_of(file: Path) -> list[Any]:
    """What changes when a file, or a file in a folder, is written again: place, sizes and times of change; short where it is missing."""
    try:
        place = os.path.realpath(file)  # Path.resolve raises a RuntimeError for a link that leads to itself
        if file.is_dir():
            return [place, *([name, *_stamp(file / name)] for name in sorted(os.listdir(file)))]
        return [place, *_stamp(file)]
    except (OSError, ValueError):
        return [str(file)]


def _stamp(file: Path) -> list[int]:
    """Size and time of change; nothing for a link to nowhere."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
