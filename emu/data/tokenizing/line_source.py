"""Files of lines: documents and conversations as JSON, or plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from emu.data.tokenizing.named_files import names_of
from emu.data.tokenizing.records import Record, digest, state_of
from emu.data.tokenizing.source_options import SourceOptions
from emu.lines import BadLine, Line, Place, count_lines, read_lines

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})


class LineSource:
    """A file, a pipe or standard input with one JSON document a line (see `emu.data.tokenizing.document_reader`).

    Args:
        name: of the file; "-" is standard input.
        options: none of them is for lines.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name = name
        self.folder = Path(name).parent if Path(name).is_file() else Path()

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Whether a name that no other source wants is one of lines: all are."""
        return True

    @property
    def length(self) -> int | None:
        """Lines, blank ones included; None for pipes."""
        return count_lines(self.name)

    @property
    def fingerprint(self) -> str:
        """Name, size and time of change of the file."""
        return digest(state_of(Path(self.name)))

    def records(self) -> Iterator[Record]:
        """The lines that are not blank; memory does not grow with their number.

        Raises:
            FileNotFoundError, NotLines: see `read_lines`.
        """
        for line in read_lines(self.name):
            place = Place(line.file, line.number)
            yield Record(place, (line.content, line.is_whole), len(line.content))

    def state(self, record: Record) -> bytes:
        """The line, and the states of the files that it names."""
        content = record.content[0]
        try:
            names = dict.fromkeys(name for item in _items(self.read(record)) for name in names_of(item))
            states = [state_of(self.folder / name) for name in names]
        except (BadLine, RecursionError):  # the line tells what is wrong with it when it is read as a document
            states = []
        return b"%d %s %s" % (record.place.number, content, json.dumps(states).encode())

    def read(self, record: Record) -> Mapping[str, Any]:
        """The JSON object on the line; errors as in `Line.table`."""
        return _line(record).table()


class TextSource(LineSource):
    """A text file, each line of which is a document."""

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Whether the name ends as names of text files do."""
        return Path(name).suffix.lower() in TEXT_SUFFIXES

    def read(self, record: Record) -> Mapping[str, Any]:
        """The line as a document of one text; errors as in `Line.text`."""
        return {"items": [_line(record).text()]}


def _line(record: Record) -> Line:
    content, is_whole = record.content
    return Line(record.place.file, record.place.number, content, is_whole)


def _items(table: Mapping[str, Any]) -> list[Any]:
    found = table.get("items")
    items = list(found) if isinstance(found, list) else []
    messages = table.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        items += content if isinstance(content, list) else []
    return items
