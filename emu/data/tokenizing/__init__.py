"""From raw files to token shards: sources of documents, their encoding in windows, shards by any number of processes.

A source of one's own is a class with `takes` (names of the `SourceOptions` that it reads), `accepts(name)` and the methods of
`RecordSource`:

    from emu.data.tokenizing import SOURCES
    SOURCES.register("mail", MailboxSource)      # emu tokenize mail:inbox.mbox, or any name that it accepts
"""

from __future__ import annotations

from typing import Any, Protocol

from emu.data.tokenizing.folder_source import FolderSource
from emu.data.tokenizing.line_source import LineSource, TextSource
from emu.data.tokenizing.records import Record, RecordSource
from emu.data.tokenizing.source_options import SourceOptions
from emu.data.tokenizing.table_source import TableSource
from emu.data.tokenizing.tar_source import TarSource
from emu_tokenizers.registry import Registry


class SourceKind(Protocol):
    """A class of sources as the table holds it."""

    takes: frozenset[str]

    def __call__(self, name: str, options: SourceOptions) -> Any: ...

    def accepts(self, name: str) -> bool: ...


SOURCES: Registry[SourceKind] = Registry(
    "source",
    {
        "lines": LineSource,
        "text": TextSource,
        "folder": FolderSource,
        "webdataset": TarSource,
        "dataset": TableSource,
    },
)
"""Kinds of sources by name; of those that accept a name the one that was registered last is taken."""
register = SOURCES.register


def open_source(name: str, options: SourceOptions | None = None) -> RecordSource:
    """The source of a name.

    Args:
        name: of a file, a folder or a dataset; `KIND:NAME` with a name of `SOURCES` chooses the kind.
        options: see `SourceOptions`.

    Raises:
        FileNotFoundError, ValueError: there is no such source, it cannot be read, or options are not for sources of this kind.
    """
    options = options or SourceOptions()
    kind, path = _kind(name)
    for option in options.given():
        if option not in SOURCES[kind].takes:
            words = "--" + option.replace("_", "-")
            told = "names columns of a table" if option in ("caption", "image") else "does not go with it"
            raise ValueError(f"{words} {told}; {name} is read as {kind!r}: leave it out")
    return SOURCES[kind](path, options)


def _kind(name: str) -> tuple[str, str]:
    word, colon, rest = name.partition(":")
    if colon and word in SOURCES:
        # The prefixes of datasets and tar files are part of their names.
        return word, name if SOURCES[word].accepts(name) and not SOURCES[word].accepts(rest) else rest
    return next((kind, name) for kind in reversed(list(SOURCES)) if SOURCES[kind].accepts(name))


__all__ = ["SOURCES", "Record", "RecordSource", "SourceOptions", "open_source", "register"]
