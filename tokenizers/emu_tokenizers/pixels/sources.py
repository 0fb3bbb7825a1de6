"""Where pictures and clips come from: folders, datasets, WebDataset shards, animations, video files.

    picture_sources("photos")                    every picture file under a folder
    picture_sources("dataset:cifar10")           the datasets library: a repository, a builder, a folder of save_to_disk
    picture_sources("webdataset:shards/*.tar")   members of uncompressed tar files
    clip_sources("clips")                        video files, animations, and folders of frames

A source is opened when it is read, and whatever is wrong with it is a `BadPicture` that says why.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import BadPicture, contained, open_image
from emu_tokenizers.pixels.listing import (
    VIDEO_SUFFIXES,
    clips_under,
    files_under,
    picture_suffixes,
)
from emu_tokenizers.pixels.tars import MAX_MEMBER_BYTES, tar_members
from emu_tokenizers.pixels.videos import VideoFile, require_video_reader

logger = logging.getLogger("emu.tokenizers")

PHOTOGRAPHS = "photographs"
"""Name of the two photographs that scikit-learn bundles."""


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
        return list(tar_members(text.removeprefix("webdataset:"), max_member_bytes))
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
        if any(Path(clip.member).suffix.lower() in VIDEO_SUFFIXES for clip in found):
            require_video_reader()
        return list(found)
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
