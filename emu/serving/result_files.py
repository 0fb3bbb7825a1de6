"""Files that replies name by address: on a disk, for an hour, under names that nobody can guess."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from emu_tokenizers.files import write_file

KEPT = 3600.0
"""Seconds that a file stays."""


@dataclass(frozen=True)
class StoredFile:
    """A file.

    Attributes:
        path: where it is.
        media_type: what it is.
        until: `time.time()` at which it goes.
    """

    path: Path
    media_type: str
    until: float


class ResultFiles:
    """Files of one process.

    Args:
        folder: for nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, StoredFile] = {}

    def add(self, data: bytes, media_type: str) -> str:
        """Store a file; returns its name.

        Raises:
            OSError: the disk is full.
        """
        self.forget()
        name = secrets.token_hex(16)
        path = self._folder / name
        write_file(path, data)
        self._files[name] = StoredFile(path, media_type, time.time() + KEPT)
        return name

    def find(self, name: str) -> StoredFile | None:
        """A file that is still there."""
        found = self._files.get(name)
        return None if found is None or found.until < time.time() else found

    def remove(self, name: str) -> None:
        """Delete a file where there is one."""
        found = self._files.pop(name, None)
        if found is not None:
            found.path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete the files whose hour is over."""
        now = time.time()
        # A list, since the event loop removes files meanwhile.
        for name in [name for name, file in list(self._files.items()) if file.until < now]:
            self.remove(name)
