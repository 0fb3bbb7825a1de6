"""Files of lines: documents and conversations as JSON, or plain text.

A line is a document, {"items": [...]}, whose items are, in order:

    "text", or {"text": "Describe it.", "weight": 0}     weight of its loss; 0 for prompts
    {"caption": "a red circle", "weight": 0.1}           text that training may drop, for guidance; one per document
    {"image": "cat.png"}                                 a picture file, relative to the document file
    {"video": "clip.mp4", "fps": 8, "start": 0, "frames": 16}    a clip, or part of it, at a frame rate
    {"frames": ["0.png", "1.png"], "fps": 8}             a clip from pictures; a single name is an animation or a folder of frames
    {"boxes": [[0, 0, 15, 31]]}                          a value of any other modality that the tokenizer has

Pictures, clips and other values may have a weight too. Or it is a conversation, {"messages": [{"role": "user", "content": ...},
{"role": "assistant", "content": ...}]}, where each content is a text or a list of items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from emu.data.tokenizing.records import Record, digest, state_of
from emu.data.tokenizing.source_options import SourceOptions
from emu.lines import BadLine, Line, Place, count_lines, read_lines

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})


class LineSource:
    """A file, a pipe or standard input with one JSON document a line, see above.

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
            names = dict.fromkeys(name for item in items_of(self.read(record)) for name in names_of(item))
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


def names_of(item: Any) -> list[str]:
    """What may be file names in an item: all its words but those of text."""
    if not isinstance(item, Mapping):
        return []
    values = [value for key, value in item.items() if key not in ("text", "caption")]
    listed = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [value for value in listed if isinstance(value, str)]


def _line(record: Record) -> Line:
    content, is_whole = record.content
    return Line(record.place.file, record.place.number, content, is_whole)


def items_of(table: Mapping[str, Any]) -> list[Any]:
    """What may be items in a document or conversation."""
    found = table.get("items")
    items = list(found) if isinstance(found, list) else []
    messages = table.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        items += content if isinstance(content, list) else []
    return items
