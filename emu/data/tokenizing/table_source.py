"""Tables of captions and pictures as documents: any dataset that the datasets library opens, and CSV, Parquet and Arrow files.

    dataset:NAME                    a folder that save_to_disk wrote, a folder of pictures, a builder, a repository
    dataset:NAME,split=test         with builder arguments after commas
    pairs.csv  pairs.tsv  pairs.parquet  pairs.arrow

A row is the document [caption, picture], or [picture, caption] where that order is asked for; a caption or a picture alone where only
that column is named. A picture is a picture, the bytes of one, or the name of a file, from where the table lies. Of a table with a column
"messages" and no other wish, rows are conversations.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.data.tokenizing.line_source import items_of, names_of
from emu.data.tokenizing.records import Record, digest, state_of
from emu.data.tokenizing.source_options import ORDERS, SourceOptions
from emu.lines import BadLine, Place, shown
from emu_tokenizers.pixels.sources import dataset_table

DATASET = "dataset:"
MESSAGES = "messages"
"""Column of conversations, which is read where no other column is asked for."""
GUESSED_ROWS = 1000
"""Rows of a CSV file by which a column of numbers is told from one of words."""
BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table make a document.

    Attributes:
        caption: name of the column of text, None to leave it out.
        image: name of the column of pictures, None to leave it out.
        order: one of `ORDERS`.
        classes: names of the classes where the captions are numbers of classes.
        messages: name of the column of conversations, of which a document is made in place of the others.
    """

    caption: str | None = None
    image: str | None = None
    order: str = ORDERS[0]
    classes: tuple[str, ...] | None = None
    messages: str | None = None

    @property
    def used(self) -> list[str]:
        """Names of the columns that are read."""
        return [column for column in (self.caption, self.image, self.messages) if column is not None]

    def document(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The document of a row as a table of a line; errors as in `items`."""
        if self.messages is None:
            return {"items": self.items(row)}
        said = row[self.messages]
        if not isinstance(said, list) or not all(isinstance(one, Mapping) for one in said):
            raise BadLine("wrong value", f"column {self.messages!r} holds {shown(said)}; expected a list of messages")
        # Rows of one table have the same keys, so that those of other messages and of other items are there and empty.
        return {"messages": [{"role": one.get("role"), "content": _without_empty(one.get("content"))} for one in said]}

    def items(self, row: Mapping[str, Any]) -> list[Any]:
        """The items of a row.

        Raises:
            BadLine: a cell holds something else than text, or than a picture.
        """
        found: dict[str, dict[str, Any]] = {}
        if self.caption is not None:
            alone = self.image is None or self.order != ORDERS[0]
            found["caption"] = {"text" if alone else "caption": self._text(row[self.caption])}
        if self.image is not None:
            found["image"] = {"image": _picture(row[self.image], self.image)}
        return [found[part] for part in self.order.split(",") if part in found]

    def _text(self, value: Any) -> str:
        if self.classes is not None and isinstance(value, int) and 0 <= value < len(self.classes):
            return self.classes[value]
        if not isinstance(value, str):
            raise BadLine("wrong value", f"column {self.caption!r} holds {shown(value)}; expected text")
        return value


class TableSource:
    """A table whose rows become documents.

    Args:
        name: see the module.
        options: columns, order, split, and whether the table is read as a stream; where they name no column, both are guessed from
            the kinds of the columns.

    Attributes:
        columns: what documents are made of.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no such columns, or more than one that fits; or it cannot be read.
    """

    takes = frozenset({"caption", "image", "order", "split", "streaming"})

    def __init__(self, name: str, options: SourceOptions) -> None:
        import datasets

        self.name, self.streaming = name, options.streaming
        self.folder = Path() if name.startswith(DATASET) else Path(name).parent
        table = _open(name, options)
        self.columns = _chosen(table, options, self.folder, name)
        table = table.select_columns(self.columns.used)
        image = self.columns.image
        if image is not None and isinstance((table.features or {}).get(image), datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        self._table = table

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Whether a name is a dataset's or that of a file that holds a table."""
        return name.startswith(DATASET) or Path(name).suffix.lower() in BUILDERS

    def __getstate__(self) -> dict[str, Any]:
        # A stream is read by one process, which sends the rows.
        return {**self.__dict__, "_table": None} if self.streaming else self.__dict__

    @property
    def length(self) -> int | None:
        """Number of rows; None for streams."""
        return None if self.streaming else len(self._table)

    @property
    def fingerprint(self) -> str:
        """That of the datasets library, which follows the files."""
        return digest(self.name, self.columns, getattr(self._table, "_fingerprint", None))

    def records(self) -> Iterator[Record]:
        """The rows in order; those of a table by number, those of a stream with what they hold.

        Raises:
            ValueError: a stream breaks off.
        """
        if not self.streaming:
            for index in range(len(self._table)):
                yield Record(Place(self.name, index, "row"), index)
            return
        try:
            for index, row in enumerate(self._table):
                yield Record(Place(self.name, index, "row"), row, sum(_size(value) for value in row.values()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name} breaks off: {error}; the same command goes on") from error

    def state(self, record: Record) -> bytes:
        """What the row holds, pictures by their digest or the state of their file."""
        told: list[Any] = []
        try:
            table = self.read(record)
            told.append(table.get("messages"))
            named = [name for item in items_of({"messages": table.get("messages")}) for name in names_of(item)]
            told += [state_of(self.folder / name) for name in named]
            for item in table.get("items", ()):
                value = item.get("image")
                if isinstance(value, bytes):
                    told.append(hashlib.sha256(value).hexdigest())
                else:
                    told.append([item, state_of(self.folder / value) if isinstance(value, str) else None])
        except Exception:  # of a bad row; it is raised again, and counted, when the row is read as a document
            told.append("unreadable")
        return b"%d %s" % (record.place.number, json.dumps(told, default=digest).encode())

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document of a row; errors as in `Columns.items`, and whatever a damaged table raises."""
        return self.columns.document(record.content if self.streaming else self._table[record.content])


def _without_empty(content: Any) -> Any:
    """What a message says, without the keys that its items do not have."""
    if not isinstance(content, list):
        return content
    return [{k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else item for item in content]


def _size(value: Any) -> int:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return len(value) if isinstance(value, bytes | str) else len(repr(value))


def _picture(value: Any, column: str) -> bytes | str:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str) or not value:
        raise BadLine("no picture", f"column {column!r} holds {shown(value)}; expected a picture or a file name")
    return value


def _open(name: str, options: SourceOptions) -> Any:
    if name.startswith(DATASET):
        return dataset_table(name.removeprefix(DATASET), options.split or "train", streaming=options.streaming)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}")
    import datasets

    suffix = Path(name).suffix.lower()
    try:
        builder = _as_text(name, "\t" if suffix == ".tsv" else ",") if BUILDERS[suffix] == "csv" else {}
        return datasets.load_dataset(
            BUILDERS[suffix],
            data_files=str(name),
            split=options.split or "train",
            streaming=options.streaming,
            **builder,
        )
    except Exception as error:
        # A stranger's file makes readers of tables raise almost anything, mostly without its name.
        raise ValueError(f"{name} cannot be read as a table: {error.__cause__ or error}") from error


def _as_text(name: str, mark: str) -> dict[str, Any]:
    """Arguments that let a CSV file be read as it stands: 007 stays 007, and NA is a word."""
    import datasets

    with Path(name).open(encoding="utf-8-sig", newline="") as file:
        columns = next(csv.reader(file, delimiter=mark), [])
    arguments: dict[str, Any] = {"sep": mark, "na_filter": False}
    if all(columns) and len(set(columns)) == len(columns):  # others get names from the reader
        arguments["features"] = datasets.Features({column: datasets.Value("string") for column in columns})
    return arguments


def _chosen(table: Any, asked: SourceOptions, folder: Path, name: str) -> Columns:
    """The columns asked for, or the only ones of their kinds."""
    first: dict[str, Any] = next(iter(table), {}) if table.features is None else {}
    names = list(table.features or first)
    kinds = {column: _kind(table, column, folder) for column in names}
    if Path(name).suffix.lower() in (".csv", ".tsv"):  # whose cells are all text
        rows = list(table.take(GUESSED_ROWS))
        kinds |= {column: "other" for column in names if all(_is_no_word(str(row[column])) for row in rows)}
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    for option, column in (("--caption", asked.caption), ("--image", asked.image)):
        if column is not None and column not in kinds:
            raise ValueError(f"{option} is {column!r}; the columns of {name} are {listed}")
    caption, image = asked.caption, asked.image
    if caption is None and image is None and MESSAGES in kinds:
        return Columns(messages=MESSAGES)
    if caption is None and image is None:
        captions, images = (
            [column for column, kind in kinds.items() if kind == wanted] for wanted in ("text", "picture")
        )
        if len(captions) != 1 or len(images) != 1:
            raise ValueError(f"name the columns with --caption and --image; those of {name} are {listed}")
        caption, image = captions[0], images[0]
        print(f"{name}: caption is column {caption!r}, image is column {image!r}")
    classes = getattr((table.features or {}).get(caption), "names", None)
    return Columns(caption, image, asked.order, None if classes is None else tuple(classes))


def _kind(table: Any, column: str, folder: Path) -> str:
    import datasets

    feature = (table.features or {}).get(column)
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.Image) or "binary" in kind:
        return "picture"
    if isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature):
        return "picture"
    value = next((row[column] for row in table.take(1)), None)
    if feature is None and (isinstance(value, bytes) or hasattr(value, "convert")):
        return "picture"
    if not isinstance(value, str) and "string" not in kind:
        return "other"
    return "picture" if isinstance(value, str) and value and _is_file(folder / value) else "text"


def _is_no_word(cell: str) -> bool:
    """Whether a cell holds a number, a truth value or nothing."""
    if not cell or cell.lower() in ("true", "false"):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # text that cannot be a name
        return False
