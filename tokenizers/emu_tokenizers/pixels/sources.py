"""Where pictures and clips come from: folders, datasets, WebDataset shards, animations, video files.

    picture_sources("photos")                    every picture file under a folder
    picture_sources("dataset:cifar10")           the datasets library: a repository, a builder, a folder of save_to_disk
    picture_sources("webdataset:shards/*.tar")   members of uncompressed tar files
    clip_sources("clips")                        video files, animations, and folders of frames

A source is opened when it is read, and whatever is wrong with it is a `BadPicture` that says why.
"""

from __future__ import annotations

import glob
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import BadPicture, contained, open_image
from emu_tokenizers.pixels.listing import (
    ANIMATION_SUFFIXES,
    VIDEO_SUFFIXES,
    clips_under,
    files_under,
    is_ignored,
    picture_suffixes,
)
from emu_tokenizers.pixels.videos import VideoFile, require_video_reader

logger = logging.getLogger("emu.tokenizers")

PHOTOGRAPHS = "photographs"
"""Name of the two photographs that scikit-learn bundles."""
MAX_MEMBER_BYTES = 1 << 28
"""Largest member of a tar file, or file in a row of a dataset, that is read: 256 MiB."""
MAX_MEMBERS = 1 << 20
"""Most members that a tar file may have."""


class Source(Protocol):
    """A picture, or the frames of a clip."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames of the clip, 1 for a picture; raises `BadPicture` as `read` does."""
        ...

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        """Upright RGB frames `start` to `start + count`, fewer at the clip's end.

        Raises:
            BadPicture: they cannot be read.
            FileNotFoundError: the file is gone.
        """
        ...


@dataclass(frozen=True)
class Frames:
    """Picture files, in order."""

    files: tuple[Path, ...]
    name: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.files)

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        frames = [open_image(file) for file in self.files[start : start + count]]
        return [frame if frame.size == frames[0].size else frame.resize(frames[0].size) for frame in frames]


class Stored:
    """A picture, or a video file, that is a value in a row of a dataset."""

    name: str
    column: str
    video: bool

    def _value(self) -> Any:
        """What the row holds."""
        raise NotImplementedError

    def _opened(self) -> VideoFile | bytes | Path:
        with contained(self.name):  # a damaged table is the fault of this row
            value = self._value()
        if isinstance(value, dict):  # a feature of the datasets library, not decoded
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if not isinstance(value, bytes | str | Path):
            raise BadPicture(
                "not a picture", f"{self.name} holds {type(value).__name__} in column {self.column!r}; expected a file"
            )
        if isinstance(value, bytes) and len(value) > MAX_MEMBER_BYTES:
            raise BadPicture("too large", f"{self.name} has {len(value)} bytes, more than {MAX_MEMBER_BYTES} allowed")
        content = value if isinstance(value, bytes) else Path(value)
        return VideoFile(content, self.name) if self.video else content

    @property
    def num_frames(self) -> int:
        opened = self._opened() if self.video else None
        return opened.num_frames if isinstance(opened, VideoFile) else 1

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        opened = self._opened()
        return opened.read(start, count) if isinstance(opened, VideoFile) else [open_image(opened, name=self.name)]


@dataclass(frozen=True)
class Row(Stored):
    """One of a table that can be read in any order."""

    table: Any = field(repr=False, compare=False)
    column: str
    index: int
    video: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"row {self.index}"

    def _value(self) -> Any:
        return self.table[self.index][self.column]


@dataclass(frozen=True)
class Member:
    """A picture or a video file inside an uncompressed tar file; its name never becomes a path."""

    archive: Path
    member: str
    offset: int
    size: int
    limit: int = MAX_MEMBER_BYTES
    video: bool = False

    @property
    def name(self) -> str:
        return f"{self.archive.name}/{self.member}"

    def _content(self) -> bytes:
        if self.size > self.limit:
            raise BadPicture("too large", f"{self.name} has {self.size} bytes, more than {self.limit} allowed")
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise BadPicture("damaged", f"{self.archive} ends within {self.member}")
        return content

    @property
    def num_frames(self) -> int:
        return VideoFile(self._content(), self.name).num_frames if self.video else 1

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        content = self._content()
        return VideoFile(content, self.name).read(start, count) if self.video else [open_image(content, name=self.name)]


def picture_files(folder: str | os.PathLike) -> list[Path]:
    """The picture files under a folder in natural order (2.png before 10.png), or the one file that is named.

    Any ending counts that Pillow reads here. Hidden files and those that systems leave are ignored; others are counted in a warning.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it.
    """
    root = Path(folder)
    if str(folder) == PHOTOGRAPHS and not root.exists():
        import sklearn.datasets

        return sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"), key=natural_key)
    if str(folder) == PHOTOGRAPHS:
        logger.warning("%r is taken from the working folder, %s, not from scikit-learn", PHOTOGRAPHS, root.resolve())
    return [root] if root.is_file() else files_under(root, picture_suffixes(), "pictures")


def picture_sources(
    source: str | os.PathLike, column: str = "image", split: str = "train", max_member_bytes: int = MAX_MEMBER_BYTES
) -> list[Source]:
    """The pictures of a folder or file, of "photographs", of "dataset:..." or of "webdataset:...".

    Args:
        source: see the module; a dataset's name may carry builder arguments after commas, for example
            "dataset:imagefolder,data_dir=photos".
        column: the dataset's column of pictures.
        split: the dataset's split.
        max_member_bytes: largest member of a tar file that is read.

    Raises:
        FileNotFoundError: there is nothing of that name, or no pictures in it.
        ValueError: the dataset has no such column, or the tar file is compressed, damaged or has too many members.
    """
    text = str(source)
    if text.startswith("dataset:"):
        return dataset_rows(text.removeprefix("dataset:"), column, split, video=False)
    if text.startswith("webdataset:"):
        return tar_members(text.removeprefix("webdataset:"), max_member_bytes)
    return [Frames((path,), path.name) for path in picture_files(source)]


def clip_sources(
    source: str | os.PathLike, column: str = "video", split: str = "train", max_member_bytes: int = MAX_MEMBER_BYTES
) -> list[Source]:
    """The clips of a folder (video files, animations, folders of frames), of a file, of "dataset:..." or "webdataset:...".

    Args:
        source: as of `picture_sources`.
        column: the dataset's column of video files.
        split: the dataset's split.
        max_member_bytes: largest member of a tar file that is read.

    Raises:
        FileNotFoundError, ValueError: as `picture_sources`.
        ModuleNotFoundError: there are video files, and PyAV is not installed.
    """
    text = str(source)
    if text.startswith("dataset:"):
        require_video_reader()
        return dataset_rows(text.removeprefix("dataset:"), column, split, video=True)
    if text.startswith("webdataset:"):
        found = tar_members(text.removeprefix("webdataset:"), max_member_bytes, clips=True)
        if any(isinstance(clip, Member) and Path(clip.member).suffix.lower() in VIDEO_SUFFIXES for clip in found):
            require_video_reader()
        return found
    root = Path(source)
    clips = [[root]] if root.is_file() else clips_under(root)
    if any(files[0].suffix.lower() in VIDEO_SUFFIXES for files in clips):
        require_video_reader()
    return [
        Frames(tuple(files), files[0].parent.name) if len(files) > 1 else VideoFile(files[0], files[0].name)
        for files in clips
    ]


def dataset_table(name: str, split: str = "train", streaming: bool = False) -> Any:
    """A table of the datasets library: a folder that `save_to_disk` wrote, or what `datasets.load_dataset` knows by that name.

    Args:
        name: of the folder, builder or repository; builder arguments may follow after commas, and among them the split:
            "imagefolder,data_dir=photos,split=test".
        split: where the name says nothing.
        streaming: read rows as they come, without a copy of the whole on the disk.

    Raises:
        FileNotFoundError: there is nothing of that name, or the hub cannot be reached.
        ValueError: no such split, arguments of another form, or files that cannot be read.
    """
    import datasets

    path, *pairs = name.split(",")
    if not all("=" in pair for pair in pairs):
        raise ValueError(f"dataset {name!r} has arguments {pairs}; expected name=value after each comma")
    options: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    split = options.pop("split", split)
    try:
        if not ((Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file()):
            return datasets.load_dataset(path, split=split, streaming=streaming, **options)
        table = datasets.load_from_disk(path)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        raise ValueError(f"the dataset {name} cannot be read: {error.__cause__ or error}") from error
    except ConnectionError as error:
        raise FileNotFoundError(f"there is no dataset {name} here, and its hub cannot be reached: {error}") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise ValueError(f"the dataset {path} has no split {split!r}; it has {sorted(table)}")
        table = table[split]
    return table.to_iterable_dataset() if streaming else table


def dataset_rows(name: str, column: str, split: str, video: bool) -> list[Source]:
    """The rows of a dataset's column, see `dataset_table`."""
    table = undecoded(dataset_table(name, split), name, column)
    return [Row(table, column, index, video) for index in range(len(table))]


def undecoded(table: Any, name: str, column: str) -> Any:
    """A table of the datasets library that gives the files of a column as they are.

    Raises:
        ValueError: it has no such column.
    """
    import datasets

    if table.column_names is not None and column not in table.column_names:
        raise ValueError(f"the dataset {name} has no column {column!r}; it has {table.column_names}")
    kind = (table.features or {}).get(column)
    if isinstance(kind, datasets.Image | datasets.Video):
        return table.cast_column(column, type(kind)(decode=False))
    return table


def tar_members(
    pattern: str, max_member_bytes: int = MAX_MEMBER_BYTES, max_members: int = MAX_MEMBERS, clips: bool = False
) -> list[Source]:
    """The pictures, or the clips, of all tar files that a pattern names; only regular files are taken, hidden ones are not.

    Args:
        pattern: of the tar files, taken in natural order.
        max_member_bytes: largest member that is read.
        max_members: most members of a file.
        clips: whether video files and animations are taken instead of pictures.

    Raises:
        FileNotFoundError: no file of that name, or no members of that kind.
        ValueError: a file is compressed, is not a tar file, or has more than `max_members` members.
    """
    found = [
        member
        for archive in tar_files(pattern)
        for member in members_of(archive, max_member_bytes, max_members=max_members, clips=clips)
    ]
    if not found:
        raise FileNotFoundError(f"no members of {pattern} end in {sorted(_suffixes(clips))}")
    return found


def tar_files(pattern: str) -> list[Path]:
    """The tar files that a pattern names, in natural order.

    Raises:
        FileNotFoundError: there are none.
    """
    archives = sorted((Path(name) for name in glob.glob(pattern, recursive=True)), key=natural_key)
    if not archives:
        raise FileNotFoundError(f"no tar files {pattern}")
    return archives


def members_of(
    archive: Path, max_member_bytes: int = MAX_MEMBER_BYTES, max_members: int = MAX_MEMBERS, clips: bool = False
) -> Iterator[Source]:
    """The pictures, or the clips, of a tar file, one by one; arguments and errors as of `tar_members`."""
    suffixes = _suffixes(clips)
    try:
        with tarfile.open(archive, "r:") as file:
            number = 0
            while (entry := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # which would grow with every member
                number += 1
                if number > max_members:
                    raise ValueError(f"{archive} has more than {max_members} members")
                if not entry.isfile() or entry.issparse() or is_ignored(entry.name):
                    continue
                if Path(entry.name).suffix.lower() in suffixes:
                    place = entry.offset_data, entry.size
                    yield Member(archive, entry.name, *place, max_member_bytes, clips)
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is not an uncompressed tar file: {error}") from error


def _suffixes(clips: bool) -> frozenset[str]:
    return VIDEO_SUFFIXES | ANIMATION_SUFFIXES if clips else picture_suffixes()
