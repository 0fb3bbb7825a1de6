"""Pictures and clips as streams: part by part, each one as it is met, however many there are.

    picture_stream("webdataset:shards/*.tar")    its parts are the tar files
    picture_stream("dataset:cifar10")            those that the datasets library reads one by one, from the disk or from its hub
    picture_stream("photos")                     folders

Nothing is listed or copied at first but the parts themselves.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.listing import VIDEO_SUFFIXES, is_animation, is_ignored, picture_suffixes, walked
from emu_tokenizers.pixels.sources import (
    PHOTOGRAPHS,
    Frames,
    Source,
    Stored,
    dataset_table,
    picture_files,
    undecoded,
)
from emu_tokenizers.pixels.tars import MAX_MEMBER_BYTES, members_of, tar_files
from emu_tokenizers.pixels.videos import VideoFile, require_video_reader


class PixelStream(Protocol):
    """Sources in parts, each of which has them in an order that stays.

    Attributes:
        parts: the name of each part, with what changes when it is written again, as far as that is seen from outside.
    """

    parts: Sequence[Any]

    def sources(self, part: int, first: int = 0) -> Iterator[Source]:
        """The sources of a part, from the one of this number on.

        Raises:
            FileNotFoundError, ValueError: the part is gone or cannot be read.
        """
        ...


class TarStream:
    """Members of uncompressed tar files; of a member nothing is read before its picture is."""

    def __init__(self, pattern: str, max_member_bytes: int, clips: bool) -> None:
        self._files, self._limit, self._clips = tar_files(pattern), max_member_bytes, clips
        self.parts: Sequence[Any] = [(file.name, file.stat().st_size) for file in self._files]

    def sources(self, part: int, first: int = 0) -> Iterator[Source]:
        """See `PixelStream`."""
        found = members_of(self._files[part], self._limit, max_members=1 << 62, clips=self._clips)
        return itertools.islice(found, first, None)


class FolderStream:
    """Files of folders, one folder after the other: pictures; or videos, animations, and the pictures of a folder as one clip."""

    def __init__(self, root: Path, clips: bool) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        self._clips, self._folders = clips, [folder for folder, _ in walked(root)]
        self.parts: Sequence[Any] = [str(folder.relative_to(root)) for folder in self._folders]

    def sources(self, part: int, first: int = 0) -> Iterator[Source]:
        """See `PixelStream`."""
        folder = self._folders[part]
        suffixes = picture_suffixes() | VIDEO_SUFFIXES if self._clips else picture_suffixes()
        names = [one.name for one in os.scandir(folder) if not is_ignored(one.name) and _is_file(one)]
        files = [folder / name for name in sorted(names, key=natural_key) if Path(name).suffix.lower() in suffixes]
        found = self._in_clips(files) if self._clips else (Frames((file,), file.name) for file in files)
        return itertools.islice(found, first, None)

    def _in_clips(self, files: Sequence[Path]) -> Iterator[Source]:
        videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if videos:
            require_video_reader()
        alone = [file for file in files if file in set(videos) or is_animation(file)]
        yield from (VideoFile(file, file.name) for file in alone)
        frames = tuple(file for file in files if file not in set(alone))
        if frames and not videos:  # pictures beside videos are thumbnails
            yield Frames(frames, frames[0].parent.name)


@dataclass(frozen=True, eq=False)
class StreamedRow(Stored):
    """One of a table that is read once, in order."""

    value: Any = field(repr=False)
    name: str
    column: str
    video: bool

    def _value(self) -> Any:
        return self.value


class RowStream:
    """Rows of a dataset's column; parts are those that the datasets library reads one by one, e.g. files of Parquet."""

    def __init__(self, name: str, column: str, split: str, clips: bool) -> None:
        self._table = undecoded(dataset_table(name, split, streaming=True), name, column)
        self._column, self._clips = column, clips
        self.parts: Sequence[Any] = [(name, split, column, number) for number in range(self._table.num_shards)]

    def sources(self, part: int, first: int = 0) -> Iterator[Source]:
        """See `PixelStream`."""
        table = self._table.shard(num_shards=len(self.parts), index=part).skip(first)
        for number, row in enumerate(table, first):
            if self._column not in row:
                raise ValueError(f"the dataset has no column {self._column!r}; it has {sorted(row)}")
            yield StreamedRow(row[self._column], f"row {number} of part {part}", self._column, self._clips)


def picture_stream(
    source: str | os.PathLike, column: str = "image", split: str = "train", max_member_bytes: int = MAX_MEMBER_BYTES
) -> PixelStream:
    """The pictures of a source; arguments and errors as of `emu_tokenizers.pixels.sources.picture_sources`."""
    return _stream(str(source), column, split, max_member_bytes, clips=False)


def clip_stream(
    source: str | os.PathLike, column: str = "video", split: str = "train", max_member_bytes: int = MAX_MEMBER_BYTES
) -> PixelStream:
    """The clips of a source; arguments and errors as of `emu_tokenizers.pixels.sources.clip_sources`."""
    return _stream(str(source), column, split, max_member_bytes, clips=True)


def _stream(source: str, column: str, split: str, max_member_bytes: int, clips: bool) -> PixelStream:
    kind, _, name = source.partition(":")
    if kind == "dataset":
        if clips:
            require_video_reader()
        return RowStream(name, column, split, clips)
    if kind == "webdataset":
        return TarStream(name, max_member_bytes, clips)
    if source == PHOTOGRAPHS and not Path(source).exists():
        return FolderStream(picture_files(source)[0].parent, clips)
    return FolderStream(Path(source), clips)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
