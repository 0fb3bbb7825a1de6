"""Tables of captions and pictures as documents: any dataset that the datasets library opens, and CSV, Parquet and Arrow files.

    dataset:NAME                    a folder that save_to_disk wrote, a folder of pictures, a builder, a repository
    dataset:NAME,split=test         with builder arguments after commas
    pairs.csv  pairs.tsv  pairs.parquet  pairs.arrow

A row is the document [caption, picture], or [picture, caption] where that order is asked for; a caption or a picture alone where only
that column is named. A picture is a picture, the bytes of one, or the name of a file, from where the table lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.data.tokenizing.document_reader import DocumentEntry
from emu.data.tokenizing.named_files import state_of
from emu.lines import BadLine, Place, shown
from emu_tokenizers.pixels.sources import dataset_table

DATASET = "dataset:"
BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
ORDERS = ("caption,image", "image,caption")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table make a document.

    Attributes:
        caption: name of the column of text, None to leave it out.
        image: name of the column of pictures, None to leave it out.
        order: one of `ORDERS`.
    """

    caption: str | None = None
    image: str | None = None
    order: str = ORDERS[0]


def is_table(name: str) -> bool:
    """Whether a name is a dataset's or that of a file that holds a table."""
    return name.startswith(DATASET) or Path(name).suffix.lower() in BUILDERS


class TableReader:
    """A table whose rows become documents.

    Args:
        name: see the module.
        columns: what documents are made of; where it names none, both are guessed from the kinds of the columns.

    Attributes:
        columns: what documents are made of.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no such columns, or more than one that fits; or it cannot be read.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        import datasets

        self.name = name
        self.folder = Path() if name.startswith(DATASET) else Path(name).parent
        table = _open(name)
        self.columns = _chosen(table, columns, self.folder, name)
        used = [column for column in (self.columns.caption, self.columns.image) if column is not None]
        table = table.select_columns(used)
        image = self.columns.image
        if image is not None and isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        caption = self.columns.caption
        feature = None if caption is None else table.features[caption]
        self._names = feature.names if isinstance(feature, datasets.ClassLabel) else None
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def entries(self) -> Iterator[DocumentEntry]:
        """The rows in order."""
        for index in range(len(self._table)):
            yield self._entry(index)

    def _entry(self, index: int) -> DocumentEntry:
        def table() -> Mapping[str, Any]:
            return {"items": self._items(self._table[index])}

        try:
            state = self._state(table()["items"])
        except (
            Exception
        ):  # whatever a stranger's row raises is raised again, and counted, when the row is read as a document
            state = b"unreadable"
        return DocumentEntry(Place(self.name, index, "row"), b"%d %s" % (index, state), table)

    def _state(self, items: list[Any]) -> bytes:
        told: list[Any] = []
        for item in items:
            value = item.get("image")
            if isinstance(value, bytes):
                told.append(hashlib.sha256(value).hexdigest())
            else:
                told.append([item, state_of(self.folder / value) if isinstance(value, str) else None])
        return json.dumps(told).encode()

    def _items(self, row: Mapping[str, Any]) -> list[Any]:
        found: dict[str, dict[str, Any]] = {}
        if self.columns.caption is not None:
            alone = self.columns.image is None or self.columns.order != ORDERS[0]
            found["caption"] = {"text" if alone else "caption": self._text(row[self.columns.caption])}
        if self.columns.image is not None:
            found["image"] = {"image": _picture(row[self.columns.image], self.columns.image)}
        return [found[part] for part in self.columns.order.split(",") if part in found]

    def _text(self, value: Any) -> str:
        if self._names is not None and isinstance(value, int) and 0 <= value < len(self._names):
            return self._names[value]
        if not isinstance(value, str):
            raise BadLine("wrong value", f"column {self.columns.caption!r} holds {shown(value)}; expected text")
        return value


def _picture(value: Any, column: str) -> bytes | str:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str) or not value:
        raise BadLine("no picture", f"column {column!r} holds {shown(value)}; expected a picture or a file name")
    return value


def _open(name: str) -> Any:
    if name.startswith(DATASET):
        return dataset_table(name.removeprefix(DATASET))
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}")
    import datasets

    suffix = Path(name).suffix.lower()
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    try:
        return datasets.load_dataset(BUILDERS[suffix], data_files=str(name), split="train", **options)
    except (
        Exception
    ) as error:  # a stranger's file makes readers of tables raise almost anything, mostly without its name
        raise ValueError(f"{name} cannot be read as a table: {error.__cause__ or error}") from error


def _chosen(table: Any, asked: Columns, folder: Path, name: str) -> Columns:
    """The columns asked for, or the only ones of their kinds."""
    kinds = {column: _kind(table, column, folder) for column in table.column_names}
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    for option, column in (("--caption", asked.caption), ("--image", asked.image)):
        if column is not None and column not in kinds:
            raise ValueError(f"{option} is {column!r}; the columns of {name} are {listed}")
    if asked.caption is not None or asked.image is not None:
        return asked
    captions, images = ([column for column, kind in kinds.items() if kind == wanted] for wanted in ("text", "picture"))
    if len(captions) != 1 or len(images) != 1:
        raise ValueError(f"name the columns with --caption and --image; those of {name} are {listed}")
    print(f"{name}: caption is column {captions[0]!r}, image is column {images[0]!r}")
    return Columns(captions[0], images[0], asked.order)


def _kind(table: Any, column: str, folder: Path) -> str:
    import datasets

    feature = table.features[column]
    kind = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.Image) or "binary" in kind:
        return "picture"
    if isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature):
        return "picture"
    if "string" not in kind:
        return "other"
    first = table[0][column] if len(table) else None
    return "picture" if isinstance(first, str) and first and _is_file(folder / first) else "text"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # text that cannot be a name
        return False
