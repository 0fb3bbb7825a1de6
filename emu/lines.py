"""Files of lines, read as a stream: JSON objects or plain text, one a line, from a file, a pipe or standard input.

Lines end in LF, CRLF or CR, and nowhere else: U+2028 inside a JSON string ends nothing. A byte order mark is skipped. What is wrong with a
line is a `BadLine`, what is wrong with a whole file (UTF-16, a Parquet file, a picture) a `NotLines`.
"""

from __future__ import annotations

import codecs
import json
import math
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast

STANDARD_INPUT = "-"
MAX_LINE = 1 << 24
"""Bytes of the longest line that is read; JSON of that length takes at most about 600 MB once it is read."""
MAX_MESSAGE = 500
"""Characters of the longest message about a line; values of any length may stand in it."""
HEAD = 4096
"""Bytes at the beginning of a file by which its kind is told."""
KINDS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "compressed (gzip)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"PK\x03\x04": "a ZIP file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"%PDF": "a PDF file",
    b"SQLite format": "a database",
    b"\x89HDF": "an HDF5 file",
}
"""First bytes of files that people give by mistake."""


class NotLines(ValueError):
    """A file that does not hold lines of text."""


class BadLine(ValueError):
    """A line, or a file that it names, that cannot be used.

    Attributes:
        reason: why, in a few words, to count by: "not JSON", "unknown key", "wrong value", ...
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class Place(NamedTuple):
    """Where something stands: a line of a file, a row of a table, a prompt of the command line."""

    file: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


class LineProblem(NamedTuple):
    """What is wrong at a place; `reason` is what it is counted by."""

    place: Place
    reason: str
    message: str


@dataclass(frozen=True)
class Line:
    """A line that is not blank.

    Attributes:
        file: the name of its file, for messages.
        number: from 1; blank lines count.
        content: its bytes, without the end of the line.
        is_whole: False where it was longer than `MAX_LINE` and was cut.
    """

    file: str
    number: int
    content: bytes
    is_whole: bool = True

    def text(self) -> str:
        """The line as text.

        Raises:
            BadLine: it is too long or not UTF-8.
        """
        if not self.is_whole:
            raise BadLine("too long", f"the line is longer than {MAX_LINE} bytes")
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = self.content[error.start]
            message = f"the line is not UTF-8: byte 0x{byte:02x} at position {error.start}; save the file as UTF-8"
            raise BadLine("not UTF-8", message) from error

    def table(self) -> dict[str, Any]:
        """The JSON object on the line.

        Raises:
            BadLine: it is not UTF-8, not JSON, nested too deeply, no object, or has a key twice or half a character.
        """
        text = self.text()
        try:
            found = json.loads(text, parse_float=_finite, parse_constant=_refuse_constant, object_pairs_hook=_unique)
            if "\\u" in text:
                json.dumps(found, ensure_ascii=False).encode()
        except BadLine:
            raise
        except UnicodeEncodeError as error:
            raise BadLine("not text", f"half a character (a lone surrogate): {error.reason}") from error
        except RecursionError as error:
            raise BadLine("not JSON", "not JSON that can be read: it is nested too deeply") from error
        except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
            raise BadLine("not JSON", f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise BadLine("not an object", f"expected a JSON object, got {shown(found)}")
        return found


def _refuse_constant(word: str) -> float:
    raise BadLine("not JSON", f"not JSON: {word} is not a number of JSON")


def _finite(word: str) -> float:
    value = float(word)
    if math.isinf(value):
        raise BadLine("not JSON", f"{shown(word)} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadLine("key twice", f"the key {shown(twice[0])} occurs twice")
    return table


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def shown(value: Any) -> str:
    """A value as messages show it: shortened, whatever its size and depth."""
    return _REPR.repr(value)


def reason_of(error: Exception) -> str:
    """Why something could not be read, in a few words, to count by."""
    if isinstance(error, FileNotFoundError):
        return "missing file"
    found = getattr(error, "reason", None)
    if isinstance(found, str) and not isinstance(error, UnicodeError):
        return found
    return "wrong value" if isinstance(error, ValueError | TypeError) else type(error).__name__


def message_of(error: Exception) -> str:
    """What an error says, shortened; its kind too where it is not one of those that are raised with a sentence for users."""
    text = str(error)
    if not isinstance(error, ValueError | TypeError | FileNotFoundError) or isinstance(error, UnicodeError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


def is_readable(name: str | Path) -> bool:
    """Whether lines can be read from something of this name: a file, a pipe, or standard input."""
    if str(name) == STANDARD_INPUT:
        return True
    try:
        return Path(name).exists() and not Path(name).is_dir()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _is_folder(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def read_lines(name: str | Path) -> Iterator[Line]:
    """The lines of a file that are not blank, one after another; memory does not grow with their number.

    Args:
        name: of a file or pipe; "-" is standard input.

    Raises:
        FileNotFoundError: there is no such file.
        NotLines: it does not hold text in UTF-8, or is one JSON document over many lines.
    """
    if not is_readable(name):
        found = "is a folder" if _is_folder(name) else "does not exist"
        raise FileNotFoundError(f"{name} {found}; expected a file with one JSON object a line")
    with _opened(name) as file:
        yield from _lines(file, "standard input" if str(name) == STANDARD_INPUT else str(name))


def count_lines(name: str | Path) -> int | None:
    """About how many lines a regular file has, blank ones included; None for what can be read only once."""
    if str(name) == STANDARD_INPUT or not Path(name).is_file():
        return None
    with Path(name).open("rb") as file:
        count, last = 0, b"\n"
        for part in iter(lambda: file.read(1 << 20), b""):
            count, last = count + part.count(b"\n"), part[-1:]
        return count + (last != b"\n")


@contextmanager
def _opened(name: str | Path) -> Iterator[BufferedReader]:
    if str(name) == STANDARD_INPUT:
        if sys.stdin is None:
            raise FileNotFoundError("standard input is closed; expected a file with one JSON object a line, or a pipe")
        yield cast(BufferedReader, sys.stdin.buffer)
    else:
        with Path(name).open("rb") as file:
            yield file


def _lines(file: BufferedReader, name: str) -> Iterator[Line]:
    number, first = 0, True
    _check_kind(file.peek(HEAD)[:HEAD], name)
    while raw := file.readline(MAX_LINE + 1):
        is_whole = len(raw) <= MAX_LINE or raw.endswith(b"\n")
        while not is_whole and (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        for part in raw.splitlines():
            number += 1
            part = part.removeprefix(codecs.BOM_UTF8)  # where files were joined, later lines begin with one too
            if part.strip():
                if first:
                    _check_form(part.strip(), name)
                    first = False
                yield Line(name, number, part, is_whole)


def _check_kind(head: bytes, name: str) -> None:
    """Refuse what is not text in UTF-8 by its first bytes."""
    detected = json.detect_encoding(head)
    sample = head[: len(head) // 4 * 4].decode(detected, "replace")
    # Other files happen to begin like UTF-16 or UTF-32, but only text goes on with the letters and marks of JSON.
    if not detected.startswith("utf-8") and sum(" " <= letter <= "~" for letter in sample) > len(sample) / 10:
        encoding = detected[:6].upper()
        raise NotLines(
            f"{name} is {encoding}; expected UTF-8: save it as such, e.g. iconv -f {encoding} -t UTF-8 {name} > new.jsonl"
        )
    for start, kind in KINDS.items():
        if head.startswith(start):
            raise NotLines(f"{name} is {kind}; expected text in UTF-8, one JSON object a line")
    controls = sum(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head)
    if controls > len(head) / 20:
        raise NotLines(f"{name} is not text; expected UTF-8, one JSON object a line")


def _check_form(line: bytes, name: str) -> None:
    if line in (b"[", b"{"):
        raise NotLines(
            f"{name} is one JSON document over many lines; expected one object a line, e.g. jq -c '.[]' {name} > new.jsonl"
        )
