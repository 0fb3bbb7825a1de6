"""The manifest of an output folder: one record for each finished request, whichever run and whichever rank made it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from emu.data.tokenizing.ranks import Rank, rank_folders
from emu.lines import BadLine, Place, read_lines
from emu_tokenizers.files import write_file

MANIFEST = "manifest.jsonl"


class Finishable(Protocol):
    """What a record can be kept of."""

    @property
    def place(self) -> Place:
        """Where it stands."""
        ...

    def record(self) -> dict[str, Any]:
        """What is asked for."""
        ...

    def digest(self, model: str) -> str:
        """Tells it apart from all others."""
        ...


class OutputManifest:
    """The finished requests of an output folder, by their digests.

    Requests of several files, settings and models stand beside each other; a request is finished where its record and its files are there.
    One of several ranks notes what it finishes in a part of its own, and reads the parts that any ranks left.

    Args:
        folder: where outputs lie.
        model: what makes them; what another model finished is done again, under another name.
        name: of the file.
        rank: that writes.
    """

    def __init__(self, folder: Path, model: str, name: str = MANIFEST, rank: Rank | None = None) -> None:
        self.folder, self.file, self.model = folder, folder / name, model
        self.part = self.file if rank is None or rank.size == 1 else rank.folder(folder) / name
        # The parts before the whole: where a folder has no locks, another rank may write the whole and take the parts away meanwhile.
        parts = [record for part in rank_folders(folder) for record in _read(part / name)]
        self._records = {record["request"]: record for record in [*_read(self.file), *parts]}

    def stem(self, request: Finishable, seed: int) -> str:
        """Name of a request's output, without suffix: its line, its seed, and 8 digits that tell it from all others."""
        return f"{request.place.number:06d}-seed{seed}-{request.digest(self.model)[:8]}"

    def find(self, request: Finishable) -> dict[str, Any] | None:
        """The record of this very request, None where it is not finished."""
        record = self._records.get(request.digest(self.model))
        return record if record is not None and self._has_files(record) else None

    def add(self, request: Finishable, files: Sequence[Path] = (), **found: Any) -> None:
        """Note that a request is finished, on the disk when this returns.

        Args:
            request: what was asked for.
            files: its outputs, in the folder.
            found: what else the record holds.
        """
        names = [file.relative_to(self.folder).as_posix() for file in files]
        digest = request.digest(self.model)
        about = {"file": request.place.file, **request.record(), **found}
        self.note([{**about, "files": names, "model": self.model, "request": digest}])

    def note(self, records: Sequence[dict[str, Any]]) -> None:
        """Put records in the place of those of the same requests, on the disk when this returns."""
        for record in records:
            self._records.pop(record["request"], None)
            self._records[record["request"]] = record
        with self.part.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(b"".join(map(_json_line, records)))
            file.flush()
            os.fsync(file.fileno())

    def close(self, requests: Sequence[Finishable]) -> list[dict[str, Any]]:
        """Rewrite the file: what other runs finished, then the finished of these requests in their order, whose records are returned."""
        ours = [record for request in requests if (record := self.find(request)) is not None]
        digests = {record["request"] for record in ours}
        others = [
            record for digest, record in self._records.items() if digest not in digests and self._has_files(record)
        ]
        write_file(self.file, b"".join(map(_json_line, [*others, *ours])))
        return ours

    def files(self) -> set[str]:
        """Names of the files of all records."""
        return {name for record in self._records.values() for name in record.get("files", ())}

    def _has_files(self, record: dict[str, Any]) -> bool:
        return all((self.folder / name).exists() for name in record.get("files", ()))


def _read(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file() and file.stat().st_size:
        for line in read_lines(file):
            try:
                record = line.table()
            except BadLine:  # the last line of a run that was killed while it wrote, or of one that writes now
                continue
            if "request" in record:
                yield record


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _json_line(record: dict[str, Any]) -> bytes:
    # Names of files may hold bytes that are no text: as an escape of JSON these would be half a character, which no line may hold.
    return (_HALF.sub(lambda half: f"\\\\u{ord(half[0]):x}", json.dumps(record, ensure_ascii=False)) + "\n").encode()


_HALF = re.compile("[\ud800-\udfff]")
