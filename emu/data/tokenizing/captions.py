"""Captions of pictures: in a file beside each, or in metadata.jsonl, metadata.csv or metadata.parquet of their folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from emu.lines import BadLine, read_lines, shown

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files of captions for a whole folder, as `datasets` reads them: each row has a file name and other columns."""
CAPTION_SUFFIXES = (".txt", ".json", ".caption")
CAPTION_KEYS = ("caption", "text", "prompt")
"""Columns that hold a caption where nothing else is said, and keys of JSON files."""
FILE_KEYS = ("file_name", "file_path", "path")
MAX_CAPTION_BYTES = 1 << 20
"""Largest file of a caption that is read."""


def caption_of(content: bytes, suffix: str, name: str, column: str | None = None) -> str:
    """The caption in a text or JSON file.

    Args:
        content: of the file.
        suffix: ".json" holds an object with one of `CAPTION_KEYS`, or a string; others hold the text itself.
        name: what messages call it.
        column: the key of the caption in place of `CAPTION_KEYS`.

    Raises:
        BadLine: the file is too large, not UTF-8, not JSON, or holds no caption.
    """
    if len(content) > MAX_CAPTION_BYTES:
        raise BadLine("too large", f"{name} has more than {MAX_CAPTION_BYTES} bytes; a caption is shorter")
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text) if suffix == ".json" else text.strip()
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8", f"{name} is not UTF-8; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadLine("not JSON", f"{name} is not JSON: {error}") from error
    if isinstance(found, Mapping):
        keys = CAPTION_KEYS if column is None else (column,)
        found = next((found[key] for key in keys if found.get(key) is not None), None)
    if isinstance(found, str) and any("\ud800" <= letter <= "\udfff" for letter in found):
        raise BadLine("not text", f"{name} holds half a character (a lone surrogate)")
    if not isinstance(found, str) or not found.strip():
        raise BadLine("no caption", f"{name} holds {shown(found)}; expected text, or a JSON object with a caption")
    return found


def metadata_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metadata file.

    Raises:
        ValueError: it cannot be read.
    """
    if file.suffix == ".jsonl":
        for line in read_lines(file):
            try:
                yield line.table()
            except BadLine as error:
                raise ValueError(f"line {line.number}: {error}") from error
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as opened:  # which skips a byte order mark, and takes CRLF
            rows = csv.DictReader(opened)
            for row in rows:
                if None in row:
                    told = "has more cells than there are columns; put texts that hold commas in quotes"
                    raise ValueError(f"line {rows.line_num} {told}")
                yield row
    else:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(1024):
                yield from batch.to_pylist()


def read_metadata(file: Path, column: str | None = None) -> Iterator[tuple[str, str | None]]:
    """(file name, caption) of each row; None where the row has none.

    Args:
        file: one of `METADATA`.
        column: of the captions; by default one of `CAPTION_KEYS`, or the only column beside the file name.

    Raises:
        ValueError: the file cannot be read, or does not have these columns.
    """
    try:
        for row in metadata_rows(file):
            key = next((key for key in FILE_KEYS if row.get(key)), None)
            if key is None:
                raise ValueError(
                    f"a row has no {' or '.join(FILE_KEYS)}; its columns are {shown(sorted(map(str, row)))}"
                )
            chosen = _caption_column(row, key, column)
            value = row.get(chosen) if chosen else None
            yield str(row[key]), value if isinstance(value, str) and value.strip() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8; save it as UTF-8") from error
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _caption_column(row: Mapping[str, Any], key: str, asked: str | None) -> str | None:
    columns = [name for name in row if name != key]
    if asked is not None:
        if asked not in row:
            raise ValueError(f"--caption is {asked!r}; the columns are {shown(sorted(map(str, columns)))}")
        return asked
    known = [name for name in CAPTION_KEYS if name in columns]
    if known or len(columns) < 2:
        return known[0] if known else next(iter(columns), None)
    raise ValueError(f"name the column of captions with --caption; there are {shown(sorted(map(str, columns)))}")


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder, whatever it holds."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[:1] and "\0" not in name
