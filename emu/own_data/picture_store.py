"""Captioned pictures of one size in a folder, divided into those to train on and those to measure on.

    pictures.npy      (N, size, size, 3) uint8
    captions.jsonl    a JSON text a line, N lines
    split.json        {"train": [rows], "held_out": [rows], "views": V, "left_out": {reason: count}, ...}

`split_pictures` makes it of any source. Which pictures are held out depends on the pictures alone: not on their order, their names or the
number of processes, and a copy of a training picture, or one that differs from it by a few levels, is never held out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.tokenizing import Record, RecordSource, SourceOptions, open_source
from emu.data.tokenizing.named_files import file_of, read_picture
from emu.lines import BadLine, message_of, reason_of
from emu.own_data.near_duplicates import groups_of, small_hash
from emu.randomness import derive_key
from emu.stopping import say
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


def captioned_picture(source: RecordSource, record: Record, size: int | None = None) -> tuple[np.ndarray, str]:
    """The picture (H, W, 3) uint8 and the caption of a record.

    Args:
        source: of the record.
        record: a document of one picture and one text.
        size: side of the square that the middle of the picture is resized to; None for its own size.

    Raises:
        Exception: of any kind, where it is bad.
    """
    document = source.read(record)
    items = document.get("items", ())
    images = [item["image"] for item in items if isinstance(item, Mapping) and "image" in item]
    texts = [item if isinstance(item, str) else item.get("caption", item.get("text")) for item in items]
    texts = [text for text in texts if isinstance(text, str) and text.strip()]
    if len(images) != 1 or len(texts) != 1 or len(items) != 2:
        raise BadLine(
            "not a captioned picture",
            f"a document of {len(images)} pictures and {len(texts)} texts; expected one picture and its caption",
        )
    file = images[0] if isinstance(images[0], bytes) else file_of(images[0], source.folder, "image")
    image = read_picture(file, None if size is None else (size, size))
    return np.asarray(to_rgb(image)), " ".join(texts[0].split())


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
            captions, keys, hashes, bad, first = self._read(partial)
            chosen, duplicates = unique_rows(keys)
            if len(chosen) < 2:
                raise ValueError(
                    f"{self.source} has {len(chosen)} different captioned pictures; expected 2 or more"
                    + (f"; the first that is bad: {first}" if first else "")
                )
            groups = groups_of(hashes[chosen])
            train, held_out = divide([keys[row] for row in chosen], groups, self.held_out, self.seed)
            lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
            write_file(partial / CAPTIONS, lines.encode("utf-8", "replace"))
            left_out = {**bad, **({"duplicate": duplicates} if duplicates else {})}
            table = {
                "train": [chosen[place] for place in train],
                "held_out": [chosen[place] for place in held_out],
                "views": self.views,
                "groups": len(set(groups.tolist())),
                "left_out": left_out,
                "first_bad": first,
            }
            write_json(partial / SPLIT, table)
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        say(f"{len(train)} pictures to train on, {len(held_out)} held out; left out: {told}")
        return 1 if bad else 0

    def _read(self, folder: Path) -> tuple[list[str], list[str], np.ndarray, Counter[str], str]:
        """Captions, keys (digests of picture and caption), hashes, and what was bad."""
        captions, keys, hashes = [], [], list[np.ndarray]()
        bad: Counter[str] = Counter()
        first = ""
        source = open_source(self.source, self.options)
        with (folder / PICTURES).open("wb") as file:
            file.write(_header(0, self.size))
            for record in source.records():
                try:
                    picture, caption = captioned_picture(source, record, self.size)
                except Exception as error:  # files of strangers break decoders in ways that nobody can list
                    bad[reason_of(error)] += 1
                    first = first or f"{record.place}: {message_of(error)}"
                    continue
                file.write(picture.tobytes())
                captions.append(caption)
                keys.append(hashlib.sha256(picture.tobytes() + caption.encode("utf-8", "replace")).hexdigest())
                hashes.append(small_hash(picture))
            file.seek(0)
            file.write(_header(len(captions), self.size))
        return captions, keys, np.array(hashes, np.uint8), bad, first


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


def training_captions(store: PictureStore) -> Iterator[str]:
    """Captions of the training pictures."""
    captions = store.captions
    return (captions[row] for row in store.rows("train"))
