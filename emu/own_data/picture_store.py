"""Captioned pictures of one size in a folder, divided into those to train on and those to measure on.

    pictures.npy      (N, size, size, 3) uint8
    captions.jsonl    a JSON text a line, N lines
    split.json        {"train": [rows], "held_out": [rows], "views": V, "seed": S, "left_out": {reason: count},
                       "named": {reason: [file: message]}, ...}

`SplitPictures` makes it of any source. Which pictures are held out depends on the pictures alone: not on their order, their names or the
number of processes, and a copy of a training picture, or one that differs from it by a few levels, is never held out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.tokenizing import Record, RecordSource, SourceOptions, open_source
from emu.data.tokenizing.named_files import file_of, read_picture
from emu.own_data.captioned_records import LeftOut, with_caption
from emu.own_data.near_duplicates import groups_of, small_hash
from emu.randomness import derive_key
from emu_tokenizers.files import new_folder, read_json, write_file, write_json
from emu_tokenizers.pixels.images import to_rgb

PICTURES, CAPTIONS, SPLIT = "pictures.npy", "captions.jsonl", "split.json"
MOST_HELD_OUT = 1000
"""Pictures that are held out at most: more of them measure no better, and teach nothing."""


@dataclass(frozen=True)
class PictureStore:
    """What a folder holds.

    Args:
        folder: written by `SplitPictures`.
    """

    folder: Path

    @cached_property
    def split(self) -> dict[str, Any]:
        """The content of `split.json`."""
        return read_json(self.folder / SPLIT)

    @cached_property
    def pictures(self) -> np.ndarray:
        """(N, size, size, 3) uint8, mapped from the disk."""
        return np.load(self.folder / PICTURES, mmap_mode="r")

    @cached_property
    def captions(self) -> list[str]:
        """A caption for each picture."""
        return [json.loads(line) for line in (self.folder / CAPTIONS).read_text("utf-8").splitlines()]

    def rows(self, part: str) -> list[int]:
        """The pictures of "train" or "held_out"."""
        if part not in ("train", "held_out"):
            raise ValueError(f"part is {part!r}; expected train or held_out")
        return self.split[part]

    def key(self, row: int) -> str:
        """The digest by which a picture is known, wherever it stands; see `key_of_picture`."""
        return key_of_picture(np.asarray(self.pictures[row]), self.captions[row])


def key_of_picture(picture: np.ndarray, caption: str) -> str:
    """64 hexadecimal digits of a picture (H, W, 3) uint8 and its caption."""
    return hashlib.sha256(picture.tobytes() + caption.encode("utf-8", "replace")).hexdigest()


def captioned_picture(source: RecordSource, record: Record, size: int | None = None) -> tuple[np.ndarray, str]:
    """The picture (H, W, 3) uint8 and the caption of a record.

    Args:
        source: of the record.
        record: a document of one picture and one text.
        size: side of the square that the middle of the picture is resized to; None for its own size.

    Raises:
        Exception: of any kind, where it is bad.
    """
    item, caption = with_caption(source.read(record).get("items", ()), ("image",), "picture")
    image = item["image"]
    file = image if isinstance(image, bytes) else file_of(image, source.folder, "image")
    image = read_picture(file, None if size is None else (size, size))
    return np.asarray(to_rgb(image)), caption


class SplitPictures:
    """Stage: reads a source of captioned pictures into a `PictureStore`.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        size: side of the squares.
        held_out: share of the pictures to measure on.
        views: how often a training picture is tokenized, each time cropped or mirrored otherwise.
        seed: of the choice.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str,
        size: int,
        held_out: float = 0.1,
        views: int = 1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if size < 8 or views < 1 or not 0 < held_out < 1:
            raise ValueError(
                f"size is {size}, views is {views} and held_out is {held_out}; expected 8 or more, 1 or more, and a share below 1"
            )
        self.source, self.size, self.held_out, self.views, self.seed = source, size, held_out, views, seed
        self.options = SourceOptions(**(options or {}))

    def run(self, folder: Path) -> int:
        """Write the store; returns 1 where pictures were left out for being bad, see `emu.training.stages.JobStage`."""
        with new_folder(folder) as partial:
            captions, keys, hashes, left_out = self._read(partial)
            chosen, left_out.duplicates = unique_rows(keys)
            left_out.check_enough(len(chosen), self.source, "picture")
            groups = groups_of(hashes[chosen])
            train, held_out = divide([keys[row] for row in chosen], groups, self.held_out, self.seed)
            table = {
                "train": [chosen[place] for place in train],
                "held_out": [chosen[place] for place in held_out],
                "views": self.views,
                "seed": self.seed,
                "groups": len(set(groups.tolist())),
                "left_out": left_out.counts,
                "named": left_out.named,
            }
            describe_store(partial, captions, table)
        left_out.say("picture", len(train), len(held_out), folder / SPLIT)
        return 1 if left_out.bad else 0

    def _read(self, folder: Path) -> tuple[list[str], list[str], np.ndarray, LeftOut]:
        """Captions, keys (digests of picture and caption), hashes, and what was left out."""
        captions, keys, hashes = [], [], list[np.ndarray]()
        left_out, source = LeftOut(), open_source(self.source, self.options)
        with (folder / PICTURES).open("wb") as file:
            file.write(_header(0, self.size))
            for picture, caption in left_out.good(source, lambda record: captioned_picture(source, record, self.size)):
                file.write(picture.tobytes())
                captions.append(caption)
                keys.append(key_of_picture(picture, caption))
                hashes.append(small_hash(picture))
            file.seek(0)
            file.write(_header(len(captions), self.size))
        return captions, keys, np.array(hashes, np.uint8), left_out


def describe_store(folder: Path, captions: Sequence[str], split: Mapping[str, Any]) -> None:
    """Write captions and split beside the pictures of a store."""
    lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
    write_file(folder / CAPTIONS, lines.encode("utf-8", "replace"))
    write_json(folder / SPLIT, split)


def _header(number: int, size: int) -> bytes:
    """The head of an .npy file, of the same length for any number of pictures."""
    told = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({number}, {size}, {size}, 3), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + told.ljust(117).encode() + b"\n"


def unique_rows(keys: list[str]) -> tuple[list[int], int]:
    """Rows of different keys in the order of the keys, and how many others there are."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return [first[key] for key in sorted(first)], len(keys) - len(first)


def divide(keys: list[str], groups: np.ndarray, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the training and the held-out pictures; groups are not divided.

    Args:
        keys: of the pictures, which alone, with the seed, decide.
        groups: (N,) of near duplicates.
        share: that is held out, up to `MOST_HELD_OUT` pictures; at least one group is, and one is not.
    """
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(place)
    order = sorted(members.values(), key=lambda places: derive_key(seed, min(keys[place] for place in places)))
    if len(order) < 2:
        raise ValueError("all pictures are near duplicates of one another; expected pictures that differ")
    wanted = min(MOST_HELD_OUT, max(1, round(share * len(keys))))
    held_out: list[int] = []
    for places in order[:-1]:
        if len(held_out) >= wanted:
            break
        held_out += places
    kept = set(held_out)
    return [place for place in range(len(keys)) if place not in kept], sorted(held_out)
