"""Pictures and clips that are members of uncompressed tar files, e.g. WebDataset shards."""

from __future__ import annotations

import glob
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import BadPicture, open_image
from emu_tokenizers.pixels.listing import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, is_ignored, picture_suffixes
from emu_tokenizers.pixels.videos import VideoFile

MAX_MEMBER_BYTES = 1 << 28
"""Largest member of a tar file, or file in a row of a dataset, that is read: 256 MiB."""
MAX_MEMBERS = 1 << 20
"""Most members that a tar file may have."""
MAX_HEADER = 1 << 18
"""Bytes of the longest header of a member, long names and extended (PAX) headers included, which are read as a whole."""


class HeaderTooLarge(Exception):
    """A member's header has more bytes than may be read of it."""


class Headers(io.BufferedReader):
    """A tar file as its headers are read: so many bytes, and no more, until the next one is asked for."""

    def __init__(self, archive: Path) -> None:
        super().__init__(io.FileIO(archive))
        self.left = MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes of the file; raises `HeaderTooLarge`."""
        self.left -= size or 0
        if self.left < 0:
            raise HeaderTooLarge
        return super().read(size)


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


def tar_members(
    pattern: str, max_member_bytes: int = MAX_MEMBER_BYTES, max_members: int = MAX_MEMBERS, clips: bool = False
) -> list[Member]:
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
    """The tar files that a pattern names, in natural order; a file of that very name is meant before a pattern, as in `photos[1].tar`.

    Raises:
        FileNotFoundError: there are none.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    archives = sorted((Path(name) for name in glob.glob(pattern, recursive=True)), key=natural_key)
    if not archives:
        raise FileNotFoundError(f"no tar files {pattern}")
    return archives


def members_of(
    archive: Path, max_member_bytes: int = MAX_MEMBER_BYTES, max_members: int = MAX_MEMBERS, clips: bool = False
) -> Iterator[Member]:
    """The pictures, or the clips, of a tar file, one by one; arguments and errors as of `tar_members`."""
    suffixes, number = _suffixes(clips), 0
    try:
        with Headers(archive) as headers, tarfile.open(fileobj=headers, mode="r:") as file:
            while (entry := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # which would grow with every member
                headers.left = MAX_HEADER
                number += 1
                if number > max_members:
                    raise ValueError(f"{archive} has more than {max_members} members")
                if not entry.isfile() or entry.issparse() or is_ignored(entry.name):
                    continue
                if Path(entry.name).suffix.lower() in suffixes:
                    place = entry.offset_data, entry.size
                    yield Member(archive, entry.name, *place, max_member_bytes, clips)
    except (HeaderTooLarge, RecursionError) as error:  # the latter of thousands of headers in a row
        raise ValueError(f"{archive} has a header of more than {MAX_HEADER} bytes after {number} members") from error
    except tarfile.TarError as error:
        if number:
            raise ValueError(f"{archive} is damaged after {number} members: {error}; copy it again") from error
        raise ValueError(f"{archive} is not an uncompressed tar file: {error}") from error


def _suffixes(clips: bool) -> frozenset[str]:
    return VIDEO_SUFFIXES | ANIMATION_SUFFIXES if clips else picture_suffixes()
