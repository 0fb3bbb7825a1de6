"""WebDataset: tar files whose members of one name are a sample, such as 000123.jpg and 000123.txt."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emu.data.tokenizing.captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, caption_of, is_inside
from emu.data.tokenizing.folder_source import captioned
from emu.data.tokenizing.records import Record, digest, state_of
from emu.data.tokenizing.source_options import SourceOptions
from emu.lines import BadLine, Place, shown
from emu_tokenizers.pixels.listing import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, is_ignored, picture_suffixes
from emu_tokenizers.pixels.tars import (
    MAX_HEADER,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    Headers,
    HeaderTooLarge,
    tar_files,
)

PREFIX = "webdataset:"


class TarSource:
    """The samples of uncompressed tar files, in the order of their names; nothing is ever unpacked to the disk.

    Links, devices, members whose names lead out of a folder, and members above 256 MiB are problems of their sample.

    Args:
        name: of a tar file, or "webdataset:" with a pattern of names.
        options: order, the key of captions in JSON members, and the rate and length of clips.

    Raises:
        FileNotFoundError: no file of that name.
    """

    takes = frozenset({"caption", "order", "fps", "clip_frames"})

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        self.folder = Path()
        self.archives = tar_files(name.removeprefix(PREFIX))

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Whether the name has the prefix, or is that of a tar file, compressed ones included (which are refused)."""
        return name.startswith(PREFIX) or Path(name).name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst"))

    @property
    def length(self) -> int | None:
        """Unknown before the end."""
        return None

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of the tar files."""
        return digest([state_of(archive) for archive in self.archives])

    def records(self) -> Iterator[Record]:
        """The samples; headers alone are read, and memory does not grow with the members of a sample.

        Raises:
            ValueError: a file is compressed or not a tar file, or has too many members.
        """
        for archive in self.archives:
            yield from self._samples(archive)

    def state(self, record: Record) -> bytes:
        """Where the members lie, and the state of the tar file."""
        return json.dumps([record.content, state_of(Path(record.content["archive"]))]).encode()

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document of a sample; raises `BadLine` where it has no picture or clip, or more than one."""
        content = record.content
        if content["problem"]:
            raise BadLine(*content["problem"])
        members: dict[str, list[int]] = content["members"]
        moving = VIDEO_SUFFIXES | ANIMATION_SUFFIXES
        media = [suffix for suffix in members if suffix in moving | picture_suffixes()]
        if len(media) != 1:
            raise BadLine("no picture", f"the members are {shown(sorted(members))}; expected one picture or clip")
        data = self._bytes(content, media[0])
        item: dict[str, Any] = {"image": data}
        if media[0] in moving:
            item = {"video": data}
            item |= {} if self.options.fps is None else {"fps": self.options.fps}
            item |= {} if self.options.clip_frames is None else {"frames": self.options.clip_frames}
        suffix = next((suffix for suffix in CAPTION_SUFFIXES if suffix in members), None)
        text = None
        if suffix is not None:
            text = caption_of(
                self._bytes(content, suffix, MAX_CAPTION_BYTES + 1),
                suffix,
                f"the member {suffix}",
                self.options.caption,
            )
        return {"items": captioned(item, text, self.options.order)}

    def _bytes(self, content: Mapping[str, Any], suffix: str, most: int = MAX_MEMBER_BYTES) -> bytes:
        offset, size = content["members"][suffix]
        size = min(size, most)
        with Path(content["archive"]).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise BadLine("damaged", f"{content['archive']} ends within the member {suffix}")
        return data

    def _samples(self, archive: Path) -> Iterator[Record]:
        seen: set[int] = set()
        number, key = 0, None
        content: dict[str, Any] = {}
        for name, offset, size, problem in _members(archive):
            if name is not None and key == name.split(".", 1)[0] and content:
                suffix = "." + name.split(".", 1)[1].lower()
                if suffix in content["members"]:
                    problem = ("duplicate name", f"two members are called {name}")
            else:
                if content:
                    yield Record(Place(f"{archive}/{key}", number, "sample"), content)
                    number += 1
                key, _, rest = (name or "").partition(".")
                suffix, content = f".{rest.lower()}", {"archive": str(archive), "members": {}, "problem": None}
                # Hashes, so that a million names take little memory.
                if hash_of(key) in seen:
                    problem = ("duplicate name", f"a sample called {key} came before")
                seen.add(hash_of(key))
            content["members"][suffix] = [offset, size]
            content["problem"] = content["problem"] or problem
        if content:
            yield Record(Place(f"{archive}/{key}", number, "sample"), content)


def hash_of(key: str) -> int:
    """A number that tells apart names of an archive, the same in every process."""
    return int(digest(key)[:16], 16)


def _members(archive: Path) -> Iterator[tuple[str | None, int, int, tuple[str, str] | None]]:
    """(name of a file with a suffix, offset, size, problem) of each member; None for the name where the file ends within one."""
    number = 0
    try:
        with Headers(archive) as headers, tarfile.open(fileobj=headers, mode="r:") as file:
            while (entry := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # which would grow with every member
                headers.left = MAX_HEADER
                number += 1
                if number > MAX_MEMBERS:
                    raise ValueError(f"{archive} has more than {MAX_MEMBERS} members; split it")
                base = entry.name.rpartition("/")[2]
                if entry.isdir() or is_ignored(entry.name) or "." not in base:
                    continue
                # The key of a sample ends at the first dot of the last part of its name.
                folder = entry.name[: len(entry.name) - len(base)].replace(".", "\u2024")
                yield folder + base, entry.offset_data, entry.size, _refusal(entry)
            if told := _after_end(archive, file.offset):  # type: ignore[attr-defined]
                yield None, 0, 0, ("damaged", told)
    except (HeaderTooLarge, RecursionError):  # the latter of thousands of headers in a row
        told = (
            f"{archive} has a header of more than {MAX_HEADER} bytes after {number} members; the rest of it is left out"
        )
        yield None, 0, 0, ("too large", f"{told}: write it again with the members alone")
    except tarfile.TarError as error:
        if not number:
            raise ValueError(
                f"{archive} is not an uncompressed tar file: {error}; unpack it with gunzip or zstd"
            ) from error
        yield None, 0, 0, ("damaged", f"{archive} is damaged after {number} members: {error}")


def _after_end(archive: Path, end: int) -> str:
    """What is wrong where something else than zeros follows the last member that tarfile finds; empty where nothing does."""
    with archive.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(end)
        if not any(part.strip(b"\0") for part in iter(lambda: file.read(1 << 20), b"")):
            return ""
    if size - end < tarfile.BLOCKSIZE:
        return f"{archive} ends within the header of a member; copy it again"
    told = f"{archive} goes on after its end, as files do that were joined with cat; the rest of it is left out"
    return f"{told}: join them with tar --concatenate, or give each by itself"


def _refusal(entry: tarfile.TarInfo) -> tuple[str, str] | None:
    if not is_inside(entry.name):
        return "outside", f"the member {shown(entry.name)} leads out of the folder"
    if not entry.isreg() or entry.issparse():
        return "not a file", f"the member {shown(entry.name)} is a link, a device or sparse; expected a file"
    if entry.size > MAX_MEMBER_BYTES:
        return (
            "too large",
            f"the member {shown(entry.name)} has {entry.size} bytes, more than {MAX_MEMBER_BYTES} allowed",
        )
    return None
