"""A folder of pictures, video files and animations, with a caption beside each or in a metadata file; or one such file."""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from emu.data.tokenizing.captions import (
    CAPTION_SUFFIXES,
    MAX_CAPTION_BYTES,
    METADATA,
    caption_of,
    is_inside,
    read_metadata,
)
from emu.data.tokenizing.clip_parts import clip_parts
from emu.data.tokenizing.records import Record, digest, state_of
from emu.data.tokenizing.source_options import SourceOptions
from emu.lines import BadLine, Place
from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.listing import VIDEO_SUFFIXES, files_under, is_animation, picture_suffixes
from emu_tokenizers.pixels.videos import require_video_reader

Found = TypeVar("Found")
FIRST_SHARD = "shard-00000.json"
"""What every folder of token shards holds; `emu.data.shards`, which says so, loads PyTorch."""


class FolderSource:
    """Pictures and clips in natural order, each a document with its caption where there are captions.

    A picture without a caption among pictures that have one is a problem, and so is a caption without its picture.

    Args:
        name: of the folder or file.
        options: column of captions in a metadata file, order, and how clips are cut.

    Raises:
        FileNotFoundError: no such folder, or neither pictures nor clips in it.
        ValueError: a metadata file cannot be read.
        ModuleNotFoundError: there are video files, and PyAV is not installed.
    """

    takes = frozenset({"caption", "order", "fps", "clip_frames", "stride"})

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        root = Path(name)
        self.folder = root.parent if root.is_file() else root
        media, beside, metadata = self._listed(root)
        if any(Path(file).suffix.lower() in VIDEO_SUFFIXES for file in media):
            require_video_reader()
        self._records = list(self._joined(media, beside, metadata))

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Whether the name is that of a folder, a picture or a video file."""
        path = Path(name)
        return path.is_dir() or (path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES | picture_suffixes())

    @property
    def length(self) -> int | None:
        """Number of files; None where a file may become several clips."""
        return len(self._records) if self.options.clip_frames is None else None

    @property
    def fingerprint(self) -> str:
        """The names of the files and their captions in a metadata file."""
        return digest([record.content for record in self._records])

    def records(self) -> Iterator[Record]:
        """The pictures and clips in natural order, then what has only a caption."""
        for record in self._records:
            file = self.folder / record.place.file
            if "problem" in record.content or not self._is_clip(file):
                yield record
                continue
            for number, part in enumerate(clip_parts(file, self.options)):
                yield Record(Place(record.place.file, number, "clip"), {**record.content, "part": part})

    def state(self, record: Record) -> bytes:
        """The names, and the states of the files."""
        content = record.content
        files = [self.folder / name for name in (record.place.file, content.get("beside")) if name]
        return json.dumps([content, [state_of(file) for file in files]]).encode()

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document of a picture or clip; raises `BadLine` for one that lacks its caption or its picture."""
        content, name = record.content, record.place.file
        if "problem" in content:
            raise BadLine(*content["problem"])
        kind = "video" if "part" in content else "image"
        media: dict[str, Any] = {kind: name, **content.get("part", {})}
        text = content.get("text")
        if content.get("beside"):
            file = self.folder / content["beside"]
            with file.open("rb") as opened:
                words = opened.read(MAX_CAPTION_BYTES + 1)
            text = caption_of(words, file.suffix.lower(), str(file), self.options.caption)
        return {"items": captioned(media, text, self.options.order)}

    def _is_clip(self, file: Path) -> bool:
        return file.suffix.lower() in VIDEO_SUFFIXES or is_animation(file)

    def _listed(self, root: Path) -> tuple[list[str], dict[str, str], list[str]]:
        """Names of pictures and clips, the caption files by the name that they share with one, and metadata files."""
        suffixes = picture_suffixes() | VIDEO_SUFFIXES
        if root.is_file():
            near = [root.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
            return [root.name], {str(Path(root.name).with_suffix("")): one.name for one in near if one.is_file()}, []
        known = suffixes | frozenset(CAPTION_SUFFIXES) | {".jsonl", ".csv", ".parquet"}
        files = files_under(root, known, "pictures, clips and captions")
        names = _without_shards([file.relative_to(root) for file in files])
        media = [str(name) for name in names if name.suffix.lower() in suffixes]
        if not media:
            raise FileNotFoundError(f"no pictures and no clips under {root}, only other files; expected at least one")
        beside = {str(name.with_suffix("")): str(name) for name in names if name.suffix.lower() in CAPTION_SUFFIXES}
        return media, beside, [str(name) for name in names if name.name in METADATA]

    def _joined(self, media: list[str], beside: dict[str, str], metadata: list[str]) -> Iterator[Record]:
        rows = as_spelt(self._rows(metadata), media)
        stems: dict[str, list[str]] = defaultdict(list)
        for name in media:
            stems[str(Path(name).with_suffix(""))].append(name)
        beside = as_spelt(beside, stems)
        # A stray text file, such as a licence, does not make every picture lack its caption.
        captioned_ones = bool(rows) or any(stem in stems for stem in beside)
        for name in media:
            stem = str(Path(name).with_suffix(""))
            for number, content in enumerate(
                self._contents(name, rows.pop(name, []), beside.get(stem), stems[stem], captioned_ones)
            ):
                yield Record(Place(name, number, "document"), content)
        for name in sorted(rows, key=natural_key):
            outside = not is_inside(name)
            told = "lies outside of the folder" if outside else "is not there, but has a caption"
            problem = ("outside" if outside else "missing file", f"{name} {told}; see metadata of {self.name}")
            yield Record(Place(name, 0, "document"), {"problem": problem})
        for stem in sorted(set(beside) - set(stems), key=natural_key) if captioned_ones else ():
            problem = ("no picture", f"{beside[stem]} is a caption without its picture")
            yield Record(Place(beside[stem], 0, "document"), {"problem": problem})

    def _contents(
        self, name: str, rows: list[str | None], beside: str | None, sharing: list[str], captions: bool
    ) -> Iterator[dict[str, Any]]:
        for text in rows:
            yield {"text": text} if text else {"problem": ("no caption", f"the row of {name} has no caption")}
        if rows:
            return
        if beside is not None and len(sharing) > 1:
            told = f"{beside} could be the caption of {' or of '.join(sharing)}; rename them"
            yield {"problem": ("duplicate name", told)}
        elif beside is not None:
            yield {"beside": beside}
        elif captions:
            yield {"problem": ("no caption", f"{name} has no caption, others have one")}
        else:
            yield {}

    def _rows(self, metadata: list[str]) -> dict[str, list[str | None]]:
        """Captions of metadata files by the name of the picture from the root."""
        found: dict[str, list[str | None]] = defaultdict(list)
        for file in metadata:
            for name, caption in read_metadata(self.folder / file, self.options.caption):
                found[str(Path(file).parent / name) if is_inside(name) else name].append(caption)
        return dict(found)


def _without_shards(names: list[Path]) -> list[Path]:
    """Names without what `emu tokenize` wrote among pictures: its files of JSON are no captions, which the same command would find next."""
    written = {name.parent for name in names if name.name == FIRST_SHARD}
    return [
        name
        for name in names
        if not (name.parent in written and (name.match("shard-*.json") or name.name == "manifest.json"))
    ]


def as_spelt(found: Mapping[str, Found], names: Iterable[str]) -> dict[str, Found]:
    """What was found under some names, under those names as others spell them: a letter and its accent may be one character or two."""
    known = set(names)
    spelt = {unicodedata.normalize("NFC", name): name for name in known}
    return {
        name if name in known else spelt.get(unicodedata.normalize("NFC", name), name): value
        for name, value in found.items()
    }


def captioned(media: Mapping[str, Any], text: str | None, order: str) -> list[Any]:
    """The items of a picture or clip and its caption, in an order of `ORDERS`.

    A caption before the picture may be left out in training, for guidance; after it, it is what is learned.
    """
    if text is None:
        return [media]
    return [{"caption": text}, media] if order.startswith("caption") else [media, {"text": text}]
